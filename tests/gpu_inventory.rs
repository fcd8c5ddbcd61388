//! What the machine's libraries say of its GPUs, through the real nvml-wrapper and cudarc, on stand-ins.
#![allow(unsafe_code)]

#[path = "common/fake_cuda.rs"]
mod fake_cuda;

use fake_cuda::{in_bare_child, in_child, path};
use libloading::Library;
use outray::gpu::{CudaSource, DeviceSource, DeviceUsage, GpuError, Inventory, Link, NvmlSource, detect};
use std::{
    ffi::CString,
    fs::{self, File},
    io::Write,
    os::fd::AsRawFd,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// The stand-in for NVML. It is one for the whole process, so one test at a time has it.
struct Nvml {
    library: Library,
    path: PathBuf,
    _alone: MutexGuard<'static, ()>,
}

impl Nvml {
    fn new(words: &str) -> Nvml {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let path = path("fake_nvml");
        // SAFETY: the stand-in runs nothing when it is opened.
        let library = unsafe { Library::new(&path) }.unwrap();
        let nvml = Nvml { library, path, _alone: alone };
        nvml.set(words);
        nvml
    }

    /// In the words of `testing/fake-nvml`.
    fn set(&self, words: &str) {
        let words = CString::new(words).unwrap();
        // SAFETY: that is its type in `testing/fake-nvml`.
        unsafe { self.library.get::<unsafe extern "C" fn(*const i8)>(b"fake_nvml_set").unwrap()(words.as_ptr().cast()) }
    }

    fn open(&self) -> Result<NvmlSource, GpuError> {
        NvmlSource::open(Some(&self.path))
    }

    fn inventory(&self) -> Result<Inventory, GpuError> {
        self.open()?.inventory()
    }
}

fn uuids(inventory: &Inventory) -> Vec<&str> {
    inventory.devices.iter().map(|device| device.uuid.as_str()).collect()
}

fn gpu(number: u32) -> String {
    format!("GPU-00000000-0000-0000-0000-{number:012}")
}

#[test]
fn devices_are_told_of_with_all_that_placement_needs() {
    let all = Nvml::new("devices=4").inventory().unwrap();
    assert_eq!(uuids(&all), [gpu(0), gpu(1), gpu(2), gpu(3)]);
    let device = &all.devices[2];
    assert_eq!((device.index, device.name.as_str(), device.numa_node, device.mig), (2, "NVIDIA H200", Some(1), false));
    assert_eq!(device.memory_bytes, (143_771 - 600) << 20, "without what the driver keeps for itself");
    assert_eq!(device.capability.to_string(), "9.0");
    let links = [(0, 1), (1, 0), (1, 2), (0, 2), (2, 3), (0, 0)].map(|(a, b)| all.link(a, b));
    let (nvlink, bridge, system) = (Some(Link::NvLink), Some(Link::HostBridge), Some(Link::System));
    assert_eq!(links, [nvlink, nvlink, bridge, system, nvlink, None]);
}

#[test]
fn a_device_with_mig_on_is_its_slices() {
    let nvml = Nvml::new("devices=3 mig=1:2 mig=2:0 process=1.1:4242:1024");
    let source = nvml.open().unwrap();
    let all = source.inventory().unwrap();
    let slice = |number| format!("MIG-00000000-0000-0000-0001-{number:012}");
    assert_eq!(
        uuids(&all),
        [gpu(0), slice(0), slice(1)],
        "the last device has no slices, so nothing of it can be used"
    );
    let device = &all.devices[2];
    assert_eq!((device.index, device.mig, device.memory_bytes), (2, true, 16 << 30));
    assert_eq!((device.name.as_str(), device.capability.major), ("NVIDIA H200 MIG 1g.18gb", 9));
    assert_eq!((all.link(0, 1), all.link(1, 2)), (Some(Link::System), Some(Link::System)));
    assert_eq!(source.usage(&all.devices[1]), Ok(DeviceUsage::default()));
    let used = DeviceUsage { used_bytes: 1024, external_bytes: 1024, ..DeviceUsage::default() };
    assert_eq!(source.usage(device), Ok(used));
}

#[test]
fn lost_and_silent_devices_are_left_out_and_the_others_count() {
    let nvml = Nvml::new("devices=4 fails=0:15 fails=2:999");
    let all = nvml.inventory().unwrap();
    assert_eq!(uuids(&all), [gpu(1), gpu(3)]);
    assert_eq!(all.devices.iter().map(|device| device.index).collect::<Vec<_>>(), [0, 1]);
    assert_eq!((all.link(0, 1), all.link(0, 2)), (Some(Link::System), None));
    nvml.set("fails=1:16 fails=3:999");
    assert_eq!(nvml.inventory(), Err(GpuError::Driver { call: "nvmlDeviceGetHandleByIndex_v2".into(), code: 999 }));
    nvml.set("devices=2 fails=0:15 fails=1:16");
    assert_eq!(nvml.inventory(), Err(GpuError::DeviceLost { device: 1 }));
}

#[test]
fn a_device_that_is_lost_later_says_so_in_its_usage() {
    let nvml = Nvml::new("devices=2 mig=0:1");
    let source = nvml.open().unwrap();
    let all = source.inventory().unwrap();
    let lost = Ok(DeviceUsage { lost: true, ..DeviceUsage::default() });
    nvml.set("fails=1:15");
    assert_eq!(source.usage(&all.devices[1]), lost);
    nvml.set("mig=0:0");
    assert_eq!(source.usage(&all.devices[0]), lost, "the slice was taken away");
    nvml.set("devices=2 fails=0:999");
    let silent = GpuError::Driver { call: "nvmlDeviceGetHandleByUUID".into(), code: 999 };
    assert_eq!(source.usage(&nvml_device(&all, 0)), Err(silent));
}

/// What a device that is cut in slices was before.
fn nvml_device(all: &Inventory, number: u32) -> outray::gpu::DeviceInfo {
    outray::gpu::DeviceInfo { uuid: gpu(number), ..all.devices[0].clone() }
}

#[test]
fn what_other_processes_use_is_told_apart() {
    let nvml = Nvml::new("devices=2");
    let source = nvml.open().unwrap();
    let all = source.inventory().unwrap();
    nvml.set(&format!("process=0:4242:{} process=0:{}:{}", 5u64 << 30, std::process::id(), 3u64 << 30));
    let used = DeviceUsage { used_bytes: 8 << 30, external_bytes: 5 << 30, busy_percent: 87, ..DeviceUsage::default() };
    assert_eq!(source.usage(&all.devices[0]), Ok(used));
    assert_eq!(source.usage(&all.devices[1]), Ok(DeviceUsage::default()));
}

#[test]
fn what_keeps_nvml_from_answering_is_said() {
    let nvml = Nvml::new("devices=0");
    assert_eq!(nvml.inventory(), Err(GpuError::NoDevice));
    let said = |words| {
        nvml.set(words);
        nvml.open().unwrap_err()
    };
    let library = nvml.path.display().to_string();
    let no_driver = |detail: &str| GpuError::NoDriver { library: library.clone(), detail: detail.into() };
    assert_eq!(said("init=9"), no_driver("the kernel's driver is not loaded"));
    let mismatch = "it is of another version than the kernel's driver: restart the machine";
    assert_eq!(said("init=18"), no_driver(mismatch));
    assert_eq!(said("init=4"), GpuError::Driver { call: "nvmlInit_v2".into(), code: 4 });

    let nowhere = NvmlSource::open(Some("/nowhere/libnvidia-ml.so.1".as_ref())).unwrap_err();
    assert!(matches!(&nowhere, GpuError::NoDriver { library, .. } if library == "/nowhere/libnvidia-ml.so.1"));
    let another = NvmlSource::open(Some(&path("fake_cuda"))).unwrap_err();
    assert!(another.to_string().ends_with("lacks nvmlInit_v2"), "{another}");
}

/// A copy of the stand-in in which these symbols have other names, as in a library from before them. It has no name of
/// its own any more, so nothing is left of it however the test ends.
struct Older(File);

impl Older {
    fn without(symbols: &[&str]) -> Older {
        let mut bytes = fs::read(path("fake_nvml")).unwrap();
        for symbol in symbols {
            let name = [b"\0", symbol.as_bytes(), b"\0"].concat();
            let places = bytes.windows(name.len()).enumerate().filter(|(_, at)| *at == name);
            let places: Vec<_> = places.map(|(place, _)| place).collect();
            assert!(!places.is_empty(), "{symbol}");
            places.into_iter().for_each(|place| bytes[place + 1] = b'x');
        }
        let file = std::env::temp_dir().join(format!("outray-older-nvml-{:016x}.so", fastrand::u64(..)));
        let older = File::create(&file).map(Older);
        fs::remove_file(&file).unwrap();
        let mut older = older.unwrap();
        older.0.write_all(&bytes).unwrap();
        older
    }

    /// The loader takes a name that it knows for what it has opened before, so all of one test are kept till its end.
    fn open(&self) -> NvmlSource {
        let path = format!("/proc/self/fd/{}", self.0.as_raw_fd());
        NvmlSource::open(Some(path.as_ref())).unwrap()
    }
}

#[test]
fn an_older_library_gives_what_it_can_or_says_what_it_lacks() {
    let older = Older::without(&["nvmlDeviceGetMigMode", "nvmlDeviceGetMemoryAffinity", "nvmlDeviceGetP2PStatus"]);
    let all = older.open().inventory().unwrap();
    assert_eq!((all.devices.len(), all.devices[0].numa_node), (4, None));
    assert_eq!((all.link(0, 1), all.link(0, 2)), (Some(Link::HostBridge), Some(Link::System)));

    let older = Older::without(&["nvmlDeviceGetMemoryInfo_v2"]);
    let error = older.open().inventory().unwrap_err();
    let lacks = "libnvidia-ml.so.1 lacks nvmlDeviceGetMemoryInfo_v2";
    assert_eq!(error, GpuError::DriverTooOld { missing: lacks.into() });

    let older = Older::without(&["nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetUtilizationRates"]);
    let source = older.open();
    let all = source.inventory().unwrap();
    assert_eq!(source.usage(&all.devices[0]), Ok(DeviceUsage::default()));
}

#[test]
fn detect_asks_nvml_once_and_usage_anew() {
    let (nvml, me) = (path("fake_nvml"), "detect_asks_nvml_once_and_usage_anew");
    if !in_bare_child(me, &[("OUTRAY_NVML_PATH", nvml.to_str().unwrap()), ("FAKE_NVML", "devices=2")]) {
        return;
    }
    let source = detect().unwrap();
    assert!(Arc::ptr_eq(&source, &detect().unwrap()));
    let all = source.inventory().unwrap();
    assert_eq!(uuids(&all), [gpu(0), gpu(1)]);
    assert_eq!(source.usage(&all.devices[0]).unwrap().used_bytes, 0);
    Nvml::new("process=0:4242:7");
    assert_eq!(source.usage(&all.devices[0]).unwrap().used_bytes, 7);
}

#[test]
fn without_nvml_cuda_tells_of_the_same_devices() {
    let me = "without_nvml_cuda_tells_of_the_same_devices";
    let Some(_cuda) = in_child(me, &[("OUTRAY_NVML_PATH", "/nowhere/libnvidia-ml.so.1")]) else { return };
    let source = detect().unwrap();
    let mut all = source.inventory().unwrap();
    assert_eq!(all, CudaSource::open().unwrap().inventory().unwrap());
    assert_eq!(all.link(0, 1), Some(Link::System), "CUDA is not asked for links");
    let unknown = GpuError::MissingLibrary { library: "libnvidia-ml.so.1".into() };
    assert_eq!(source.usage(&all.devices[0]), Err(unknown));
    // CUDA's own order is the reverse of the bus.
    let nvml = Nvml::new("devices=4").inventory().unwrap();
    for (cuda, nvml) in all.devices.iter_mut().zip(&nvml.devices) {
        assert_eq!(cuda.memory_bytes, 1 << 20);
        cuda.memory_bytes = nvml.memory_bytes;
    }
    assert_eq!(all.devices, nvml.devices);
}

#[test]
fn devices_that_cuda_hides_from_the_process_are_left_out() {
    let (nvml, me) = (path("fake_nvml"), "devices_that_cuda_hides_from_the_process_are_left_out");
    // The stand-in for libcuda shows as many as `FAKE_CUDA_DEVICES` says.
    let environment = [
        ("OUTRAY_NVML_PATH", nvml.to_str().unwrap()),
        ("CUDA_VISIBLE_DEVICES", "as FAKE_CUDA_DEVICES says"),
        ("FAKE_CUDA_DEVICES", "2"),
    ];
    let Some(_cuda) = in_child(me, &environment) else { return };
    let all = detect().unwrap().inventory().unwrap();
    assert_eq!(uuids(&all), [gpu(0), gpu(1)]);
    assert_eq!((all.links.len(), all.link(0, 1)), (2, Some(Link::NvLink)));
}

#[test]
fn without_a_driver_both_libraries_are_named() {
    let me = "without_a_driver_both_libraries_are_named";
    if !in_bare_child(me, &[("OUTRAY_NVML_PATH", "/nowhere/libnvidia-ml.so.1")]) {
        return;
    }
    // SAFETY: the driver's library runs nothing when it is opened that this process could see.
    if unsafe { Library::new("libcuda.so.1") }.is_ok() {
        return; // this machine has a driver
    }
    let error = detect().map(|_| ()).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, GpuError::NoDriver { .. }), "{text}");
    assert!(text.contains("/nowhere/libnvidia-ml.so.1 and libcuda.so.1 could not be loaded"), "{text}");
    assert_eq!(detect().map(|_| ()), Err(error), "and again");
}

#[test]
fn a_fault_of_libcuda_or_nvml_is_said_rather_than_that_the_other_is_missing() {
    let me = "a_fault_of_libcuda_or_nvml_is_said_rather_than_that_the_other_is_missing";
    let nowhere = ("OUTRAY_NVML_PATH", "/nowhere/libnvidia-ml.so.1");
    let Some(_cuda) = in_child(me, &[nowhere, ("FAKE_CUDA_INIT", "999")]) else { return };
    let error = detect().map(|_| ()).unwrap_err();
    assert_eq!(error, GpuError::Driver { call: "cuInit".into(), code: 999 });
}
