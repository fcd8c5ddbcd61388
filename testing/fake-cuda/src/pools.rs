//! Pools of memory with a limit of their own. What is taken from them is a device's memory as any other.

use crate::state::{Code, INVALID_HANDLE, OK, OUT_OF_MEMORY, in_context, with};
use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

struct Pool {
    limit: usize,
    /// Addresses and lengths, also of what was given back since.
    taken: Vec<(u64, usize)>,
}

static POOLS: Mutex<Option<HashMap<usize, Pool>>> = Mutex::new(None);

fn pools<T>(f: impl FnOnce(&mut HashMap<usize, Pool>) -> T) -> T {
    f(POOLS.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default())
}

/// `properties` is a `CUmemPoolProps`, whose limit is behind four numbers and a pointer. 0 is none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemPoolCreate(pool: *mut usize, properties: *const u8) -> Code {
    let limit = match properties.add(24).cast::<usize>().read() {
        0 => usize::MAX,
        limit => limit,
    };
    *pool = with(|state| state.handle());
    pools(|pools| pools.insert(*pool, Pool { limit, taken: Vec::new() }));
    OK
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemPoolDestroy(pool: usize) -> Code {
    pools(|pools| pools.remove(&pool).map_or(INVALID_HANDLE, |_| OK))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAllocFromPoolAsync(address: *mut u64, bytes: usize, pool: usize, stream: usize) -> Code {
    pools(|pools| {
        let Some(pool) = pools.get_mut(&pool) else { return INVALID_HANDLE };
        in_context(|state, device| {
            let Some(stream) = state.stream(stream) else { return INVALID_HANDLE };
            pool.taken.retain(|(address, bytes)| state.holds(*address, *bytes));
            if pool.taken.iter().map(|(_, bytes)| bytes).sum::<usize>() + bytes > pool.limit {
                return OUT_OF_MEMORY;
            }
            match state.allocate(stream, bytes, device) {
                Ok(allocated) => {
                    *address = allocated;
                    pool.taken.push((allocated, bytes));
                    OK
                }
                Err(code) => code,
            }
        })
    })
}
