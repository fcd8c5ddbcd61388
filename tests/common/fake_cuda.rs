//! The stand-in libcuda, opened before cudarc looks for one.
#![allow(unsafe_code)]
#![allow(dead_code, reason = "each test file uses part of it")]

use libloading::Library;
use outray::gpu::{ComputeCapability, DeviceInfo};
use std::process::Command;

const CHILD: &str = "FAKE_CUDA_CHILD";

pub(crate) struct Fake(Library);

/// Runs the test of this name again in a process of its own, with these variables, and asserts that it passes there.
/// In that process: the stand-in, which is open from then on.
///
/// cudarc finds a library once per process. It asks for `libcuda.so`, the stand-in's SONAME, and the loader gives it
/// what is open under that name even where a real driver is installed. cargo puts the stand-in beside the tests.
pub(crate) fn in_child(test: &str, environment: &[(&str, &str)]) -> Option<Fake> {
    if std::env::var(CHILD).as_deref() == Ok(test) {
        return Some(Fake::open());
    }
    run_child(test, environment);
    None
}

/// The same without opening the stand-in: `true` in that process.
pub(crate) fn in_bare_child(test: &str, environment: &[(&str, &str)]) -> bool {
    let inside = std::env::var(CHILD).as_deref() == Ok(test);
    if !inside {
        run_child(test, environment);
    }
    inside
}

fn run_child(test: &str, environment: &[(&str, &str)]) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env(CHILD, test)
        .env_remove("OUTRAY_CUDA_PATH")
        .env_remove("CUDA_VISIBLE_DEVICES")
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{environment:?}: {}\n{out}\n{err}", output.status);
    assert!(out.contains("1 passed"), "there is no test {test}: {out}");
}

/// Where cargo put a stand-in, as a path.
pub(crate) fn path(name: &str) -> std::path::PathBuf {
    std::env::current_exe().unwrap().with_file_name(format!("lib{name}.so"))
}

/// The stand-in's device with this number in the order of the PCI bus. CUDA's order is the reverse.
pub(crate) fn device(index: u32) -> DeviceInfo {
    DeviceInfo {
        index,
        uuid: format!("GPU-00000000-0000-0000-0000-{index:012x}"),
        name: "NVIDIA H200".into(),
        memory_bytes: 1 << 20,
        capability: ComputeCapability { major: 9, minor: 0 },
        numa_node: None,
        mig: false,
    }
}

impl Fake {
    fn open() -> Fake {
        // SAFETY: the stand-in runs nothing when it is opened.
        Fake(unsafe { Library::new(path("fake_cuda")) }.unwrap())
    }

    /// What real hardware could have done in another order since the last call; nothing, if it is empty.
    pub(crate) fn races(&self) -> String {
        let mut text = vec![0; 1 << 16];
        // SAFETY: that is its type in `testing/fake-cuda`; it writes at most so many bytes.
        let length = unsafe {
            let take = self.0.get::<unsafe extern "C" fn(*mut u8, usize) -> usize>(b"fake_cuda_races").unwrap();
            take(text.as_mut_ptr(), text.len())
        };
        text.truncate(length);
        String::from_utf8(text).unwrap()
    }

    /// From now on every call in the context of the device with this number fails with this code.
    pub(crate) fn set_fault(&self, index: u32, code: u32) {
        // SAFETY: that is its type in `testing/fake-cuda`.
        unsafe { self.0.get::<extern "C" fn(usize, u32)>(b"fake_cuda_fault").unwrap()(3 - index as usize, code) }
    }

    /// While it is held the device finishes nothing that it is given from now on, and the host's waits block.
    pub(crate) fn hold(&self, index: u32, hold: bool) {
        // SAFETY: that is its type in `testing/fake-cuda`.
        unsafe { self.0.get::<extern "C" fn(usize, bool)>(b"fake_cuda_hold").unwrap()(3 - index as usize, hold) }
    }

    /// How many modules were loaded until now.
    pub(crate) fn module_loads(&self) -> usize {
        // SAFETY: that is its type in `testing/fake-cuda`.
        unsafe { self.0.get::<extern "C" fn() -> usize>(b"fake_cuda_module_loads").unwrap()() }
    }

    /// Bytes that are allocated on the device with this number.
    pub(crate) fn used(&self, index: u32) -> usize {
        // SAFETY: that is its type in `testing/fake-cuda`.
        unsafe { self.0.get::<extern "C" fn(usize) -> usize>(b"fake_cuda_used").unwrap()(3 - index as usize) }
    }

    /// Page-locked bytes.
    pub(crate) fn pinned(&self) -> usize {
        // SAFETY: that is its type in `testing/fake-cuda`.
        unsafe { self.0.get::<extern "C" fn() -> usize>(b"fake_cuda_pinned").unwrap()() }
    }

    /// From now on every so many waits of streams, and of the host, are as if they had been left out.
    pub(crate) fn forget_waits(&self, streams: u64, host: u64) {
        // SAFETY: that is its type in `testing/fake-cuda`.
        unsafe { self.0.get::<extern "C" fn(u64, u64)>(b"fake_cuda_forget_waits").unwrap()(streams, host) }
    }
}
