//! Faults in processes of a cluster, on the stand-in libcuda.

mod common;
#[path = "common/fake_cuda.rs"]
mod fake_cuda;

use common::{until, watch};
use cudarc::driver::{LaunchConfig, PushKernelArg};
use outray::{
    Error, Isolation, LocalCluster,
    gpu::{GpuError, Inventory, cudarc},
    task,
};

struct Device;

impl Device {
    fn new() -> Self {
        Device
    }

    /// `1 + x`, as the device adds, and where.
    fn add_one(&self, x: f32) -> Result<(f32, u32), GpuError> {
        let gpu = task::context().gpu(0)?;
        let (a, n) = (1.0f32, 1i32);
        let (x, mut y) = (gpu.upload(&[x])?.freeze(), gpu.upload(&[1.0f32])?);
        let kernel = gpu.function("//", "saxpy")?;
        {
            let (x, mut y) = (x.read(&gpu)?, y.write(&gpu)?);
            let mut launch = gpu.stream().launch_builder(&kernel);
            launch.arg(&a).arg(&x).arg(&mut y).arg(&n);
            // SAFETY: the stand-in's kernel takes these, and both have one element.
            #[allow(unsafe_code)]
            let launched = unsafe { launch.launch(LaunchConfig::for_num_elems(1)) };
            gpu.check("cuLaunchKernel", launched.map(drop))?;
        }
        Ok((y.freeze().to_vec()?[0], std::process::id()))
    }

    /// Reads where there is nothing.
    fn trap(&mut self) {
        let gpu = task::context().gpu(0).unwrap();
        let kernel = gpu.function("//", "trap").unwrap();
        // SAFETY: the stand-in's kernel takes no arguments.
        #[allow(unsafe_code)]
        let launched = unsafe { gpu.stream().launch_builder(&kernel).launch(LaunchConfig::for_num_elems(1)) };
        gpu.check("cuLaunchKernel", launched.map(drop)).unwrap();
        gpu.synchronize().unwrap();
    }
}

#[test]
fn an_isolated_actor_whose_kernel_faults_works_again_in_a_new_process() {
    const NAME: &str = "an_isolated_actor_whose_kernel_faults_works_again_in_a_new_process";
    let path = fake_cuda::path("fake_cuda");
    if !fake_cuda::in_bare_child(NAME, &[("OUTRAY_CUDA_PATH", path.to_str().unwrap())]) {
        return;
    }
    watch(|| {
        let devices = vec![fake_cuda::device(0), fake_cuda::device(1)];
        let inventory = Inventory { devices, links: vec![vec![None; 2]; 2] };
        let cluster = LocalCluster::builder().nodes(1).cpus(2.0).gpu_inventory(inventory).start().unwrap();
        let rt = cluster.connect().unwrap();
        let shared = rt.actor_builder(Device::new).gpus(0.25).start(());
        let alone = rt.actor_builder(Device::new).gpus(0.25).isolation(Isolation::Process).max_restarts(1).start(());
        let add = |actor: &outray::Actor<Device>| actor.call(Device::add_one, 2.0f32).get();
        let (sum, neighbour) = add(&shared).unwrap().unwrap();
        let (same, first) = add(&alone).unwrap().unwrap();
        assert_eq!((sum, same), (3.0, 3.0));
        assert_ne!(neighbour, first);
        let error = alone.call(Device::trap, ()).get().unwrap_err();
        assert!(matches!(&error, Error::Panicked { message, .. } if message.contains("Poisoned")), "{error}");
        until("it works again", || matches!(add(&alone), Ok(Ok((3.0, pid))) if pid != first));
        // The context of those that share a process is another.
        assert_eq!(add(&shared), Ok(Ok((3.0, neighbour))));
        // There a fault stays, and says what to do.
        assert!(shared.call(Device::trap, ()).get().is_err());
        let after = rt.task(|| task::context().gpu(0).map(drop)).gpus(0.25).submit(()).get().unwrap().unwrap_err();
        assert!(after.to_string().contains("Isolation::Process"), "{after}");
        assert!(matches!(add(&alone), Ok(Ok((3.0, _)))));
    });
}
