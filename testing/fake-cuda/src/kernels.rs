//! The kernels that modules of this driver have, whatever their image: those of `examples/support/kernels.cu`, by name,
//! and `trap`, which accesses memory that is not there.

use std::ffi::{CStr, c_void};

/// What a parameter of a kernel is. Pointers say what the kernel does through them.
#[derive(Clone, Copy)]
pub(crate) enum Parameter {
    F32,
    I32,
    Read,
    Write,
}

use Parameter::{F32, I32, Read, Write};

pub(crate) struct Kernel {
    pub(crate) name: &'static CStr,
    parameters: &'static [Parameter],
    run: unsafe fn(Arguments<'_>),
}

/// One word for each argument, the way it lies in memory.
#[derive(Clone, Copy)]
struct Arguments<'a>(&'a [u64]);

impl Arguments<'_> {
    fn f32(self, at: usize) -> f32 {
        f32::from_bits(self.0[at] as u32)
    }

    fn count(self, at: usize) -> usize {
        usize::try_from(self.0[at] as u32 as i32).unwrap_or(0)
    }

    /// # Safety
    /// The argument points to so many elements, and nobody writes them meanwhile.
    unsafe fn read<'b, T>(self, at: usize, len: usize) -> &'b [T] {
        // SAFETY: as the caller promises.
        unsafe { std::slice::from_raw_parts(self.0[at] as *const T, len) }
    }

    /// # Safety
    /// The argument points to so many elements, and nobody else uses them meanwhile.
    unsafe fn write<'b>(self, at: usize, len: usize) -> &'b mut [f32] {
        // SAFETY: as the caller promises.
        unsafe { std::slice::from_raw_parts_mut(self.0[at] as *mut f32, len) }
    }
}

impl Kernel {
    /// The arguments of a launch, copied: a captured launch outlives what the caller points to.
    ///
    /// # Safety
    /// `arguments` is what `cuLaunchKernel` takes for this kernel.
    pub(crate) unsafe fn arguments(&self, arguments: *mut *mut c_void) -> Vec<u64> {
        let word = |(at, parameter): (usize, &Parameter)| {
            // SAFETY: there is a pointer for each parameter, and it points to one of its type.
            unsafe {
                let argument = *arguments.add(at);
                match parameter {
                    F32 | I32 => u64::from(argument.cast::<u32>().read_unaligned()),
                    Read | Write => argument.cast::<u64>().read_unaligned(),
                }
            }
        };
        self.parameters.iter().enumerate().map(word).collect()
    }

    /// The memory that a launch with these arguments uses: an address, and whether it writes there.
    pub(crate) fn accesses(&self, arguments: &[u64]) -> Vec<(u64, bool)> {
        let access = |(parameter, address): (&Parameter, &u64)| match parameter {
            Read => Some((*address, false)),
            Write => Some((*address, true)),
            F32 | I32 => None,
        };
        self.parameters.iter().zip(arguments).filter_map(access).collect()
    }

    /// # Safety
    /// The arguments are those of a launch of this kernel, and what they point to is there and long enough.
    pub(crate) unsafe fn run(&self, arguments: &[u64]) {
        // SAFETY: as the caller promises.
        unsafe { (self.run)(Arguments(arguments)) }
    }
}

pub(crate) const KERNELS: [Kernel; 9] = [
    Kernel { name: c"saxpy", parameters: &[F32, Read, Write, I32], run: saxpy },
    Kernel { name: c"fill", parameters: &[F32, Write, I32], run: fill },
    Kernel { name: c"bias_relu", parameters: &[Write, Read, I32, I32], run: bias_relu },
    Kernel { name: c"relu_gradient", parameters: &[Write, Read, I32], run: relu_gradient },
    Kernel { name: c"bias_softmax", parameters: &[Write, Read, I32, I32], run: bias_softmax },
    Kernel { name: c"cross_entropy_gradient", parameters: &[Write, Read, I32, I32], run: cross_entropy_gradient },
    Kernel { name: c"column_sums", parameters: &[Read, Write, I32, I32], run: column_sums },
    Kernel { name: c"sgd", parameters: &[Write, Write, Read, Read, F32, F32, I32], run: sgd },
    Kernel { name: c"trap", parameters: &[], run: trap },
];

/// Never runs: the device faults.
unsafe fn trap(_: Arguments<'_>) {}

unsafe fn saxpy(a: Arguments<'_>) {
    let n = a.count(3);
    // SAFETY: `Kernel::run`'s caller promises both vectors.
    let (x, y) = unsafe { (a.read::<f32>(1, n), a.write(2, n)) };
    y.iter_mut().zip(x).for_each(|(y, x)| *y += a.f32(0) * x);
}

unsafe fn fill(a: Arguments<'_>) {
    // SAFETY: `Kernel::run`'s caller promises the vector.
    unsafe { a.write(1, a.count(2)) }.fill(a.f32(0));
}

unsafe fn bias_relu(a: Arguments<'_>) {
    let (rows, columns) = (a.count(2), a.count(3));
    // SAFETY: `Kernel::run`'s caller promises the matrix and one bias for each column.
    let (x, bias) = unsafe { (a.write(0, rows * columns), a.read::<f32>(1, columns)) };
    x.iter_mut().zip(bias.iter().cycle()).for_each(|(x, bias)| *x = (*x + bias).max(0.0));
}

unsafe fn relu_gradient(a: Arguments<'_>) {
    let n = a.count(2);
    // SAFETY: `Kernel::run`'s caller promises both vectors.
    let (error, units) = unsafe { (a.write(0, n), a.read::<f32>(1, n)) };
    error.iter_mut().zip(units).filter(|(_, unit)| **unit == 0.0).for_each(|(error, _)| *error = 0.0);
}

unsafe fn bias_softmax(a: Arguments<'_>) {
    let (rows, columns) = (a.count(2), a.count(3));
    // SAFETY: `Kernel::run`'s caller promises the matrix and one bias for each column.
    let (x, bias) = unsafe { (a.write(0, rows * columns), a.read::<f32>(1, columns)) };
    for row in x.chunks_exact_mut(columns.max(1)) {
        row.iter_mut().zip(bias).for_each(|(x, bias)| *x += bias);
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        row.iter_mut().for_each(|x| *x = (*x - largest).exp());
        let sum: f32 = row.iter().sum();
        row.iter_mut().for_each(|x| *x /= sum);
    }
}

unsafe fn cross_entropy_gradient(a: Arguments<'_>) {
    let (rows, columns) = (a.count(2), a.count(3));
    // SAFETY: `Kernel::run`'s caller promises the matrix and one label for each row.
    let (p, labels) = unsafe { (a.write(0, rows * columns), a.read::<i32>(1, rows)) };
    for (row, label) in p.chunks_exact_mut(columns.max(1)).zip(labels) {
        for (column, p) in (0..).zip(row) {
            *p = (*p - f32::from(column == *label)) / rows as f32;
        }
    }
}

unsafe fn column_sums(a: Arguments<'_>) {
    let (rows, columns) = (a.count(2), a.count(3));
    // SAFETY: `Kernel::run`'s caller promises the matrix and one sum for each column.
    let (x, sums) = unsafe { (a.read::<f32>(0, rows * columns), a.write(1, columns)) };
    sums.fill(0.0);
    for row in x.chunks_exact(columns.max(1)) {
        sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
    }
}

unsafe fn sgd(a: Arguments<'_>) {
    let (momentum, l2, n) = (a.f32(4), a.f32(5), a.count(6));
    // SAFETY: `Kernel::run`'s caller promises three vectors and the rate.
    let (parameters, velocity, gradient, rate) =
        unsafe { (a.write(0, n), a.write(1, n), a.read::<f32>(2, n), a.read::<f32>(3, 1)[0]) };
    for ((parameter, velocity), gradient) in parameters.iter_mut().zip(velocity).zip(gradient) {
        *velocity = momentum * *velocity - rate * (gradient + l2 * *parameter);
        *parameter += *velocity;
    }
}
