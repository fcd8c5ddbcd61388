//! The stand-ins for the driver's libraries, under the names that programs look for.

use libloading::Library;
use std::{
    env, fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

/// A folder with the stand-ins in it, removed with this.
pub(crate) struct StandIns(PathBuf);

impl StandIns {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("outray-stand-ins-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let folder = StandIns(env::temp_dir().join(name));
        fs::create_dir(&folder.0).unwrap();
        // Cargo puts the shared libraries of dependencies beside the tests.
        let test = env::current_exe().unwrap();
        for (library, name) in [
            ("libfake_cuda.so", "libcuda.so"),
            ("libfake_cublas.so", "libcublas.so"),
            ("libfake_nvml.so", "libnvidia-ml.so.1"),
        ] {
            symlink(test.parent().unwrap().join(library), folder.0.join(name)).unwrap();
        }
        folder
    }

    /// The program, which will find the stand-ins before anything that is installed.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env("LD_LIBRARY_PATH", &self.0);
        command
    }
}

impl Drop for StandIns {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs the test once more in a process of its own, with the stand-ins and these variables, and gives the stand-in for
/// libcuda there and nothing here. cudarc opens a library once for each process.
pub(crate) fn in_child(test: &str, variables: &[(&str, &str)]) -> Option<Cuda> {
    const CHILD: &str = "OUTRAY_TEST_CHILD";
    if env::var(CHILD).as_deref() == Ok(test) {
        // SAFETY: the stand-in has no initializers.
        return Some(Cuda(unsafe { Library::new("libcuda.so") }.unwrap()));
    }
    let stand_ins = StandIns::new();
    let output = stand_ins
        .command(&env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env(CHILD, test)
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    print!("{text}");
    None
}

/// The stand-in for libcuda that this process uses.
pub(crate) struct Cuda(Library);

impl Cuda {
    /// What the checker has reported since it was asked last: accesses that a device may do in another order.
    pub(crate) fn races(&self) -> String {
        let mut text = vec![0; 1 << 16];
        // SAFETY: the stand-in declares it so, and writes at most so many bytes.
        let len = unsafe {
            let races = self.0.get::<unsafe extern "C" fn(*mut u8, usize) -> usize>(b"fake_cuda_races").unwrap();
            races(text.as_mut_ptr(), text.len())
        };
        text.truncate(len);
        String::from_utf8(text).unwrap()
    }
}
