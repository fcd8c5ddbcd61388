//! What the runtime does with sessions, on the stand-in libcuda.

#[path = "../../../tests/common/fake_cuda.rs"]
mod fake_cuda;

use super::*;
use fake_cuda::{device, in_child};

fn open(index: u32) -> Arc<Device> {
    Device::open(&device(index)).unwrap()
}

/// The stand-in's first answer may be that it is not complete yet.
fn is_complete(event: &Event) -> bool {
    event.is_complete().unwrap() || event.is_complete().unwrap()
}

#[test]
fn a_session_comes_after_the_events_that_it_was_given() {
    let Some(fake) = in_child("gpu::session::tests::a_session_comes_after_the_events_that_it_was_given", &[]) else {
        return;
    };
    let device = open(0);
    let zero = |gpu: &Gpu, slice: &mut _| gpu.stream().memset_zeros(slice).unwrap();
    let first = Gpu::lease(&device, &[]).unwrap();
    let mut slice = first.stream().alloc_zeros::<u8>(64).unwrap();
    // Keeps the next session from taking the first one's stream.
    let [other, another] = [(); 2].map(|()| Gpu::lease(&device, &[]).unwrap());
    drop(other);
    let done = first.finish().unwrap();
    drop(another);
    let ordered = Gpu::lease(&device, std::slice::from_ref(&done)).unwrap();
    assert_ne!(ordered.ordered().id(), done.stream());
    zero(&ordered, &mut slice);
    assert_eq!(fake.races(), "");
    let unordered = Gpu::lease(&device, &[]).unwrap();
    zero(&unordered, &mut slice);
    assert!(fake.races().contains("not ordered after write"));
}

#[test]
fn a_session_is_over_when_its_work_is() {
    let Some(fake) = in_child("gpu::session::tests::a_session_is_over_when_its_work_is", &[]) else { return };
    let device = open(0);
    let idle = Gpu::lease(&device, &[]).unwrap().finish().unwrap();
    assert!(is_complete(&idle));
    fake.hold(0, true);
    let gpu = Gpu::lease(&device, &[]).unwrap();
    let slice = gpu.stream().alloc_zeros::<u8>(64).unwrap();
    let done = gpu.finish().unwrap();
    // The next one has the stream already, and does not wait.
    let next = Gpu::lease(&device, std::slice::from_ref(&done)).unwrap();
    assert_eq!(next.ordered().id(), done.stream());
    let after = next.finish().unwrap();
    assert!(!is_complete(&done) && !is_complete(&after));
    let waiter = std::thread::spawn({
        let after = after.clone();
        move || after.synchronize()
    });
    fake.hold(0, false);
    waiter.join().unwrap().unwrap();
    assert!(is_complete(&done) && is_complete(&after));
    drop(slice);
    assert_eq!(fake.races(), "");
}

#[test]
fn a_fault_of_another_device_is_not_ones_own() {
    let Some(fake) = in_child("gpu::session::tests::a_fault_of_another_device_is_not_ones_own", &[]) else { return };
    let [broken, sound] = [0, 1].map(open);
    let event = Gpu::lease(&broken, &[]).unwrap().finish().unwrap();
    let gpu = Gpu::lease(&sound, &[]).unwrap();
    assert_eq!(Device::known_fault(broken.info()), None);
    fake.set_fault(0, 719);
    let error = gpu.ordered().wait(&event).unwrap_err();
    assert!(matches!(error, GpuError::Poisoned { device: 0, code: 719, .. }), "{error}");
    assert_eq!(Device::known_fault(broken.info()), Some(error));
    assert_eq!((Device::known_fault(sound.info()), gpu.synchronize()), (None, Ok(())));
    assert!(event.is_complete().is_err() && event.synchronize().is_err());
}

#[test]
fn an_unknown_error_is_a_fault_where_the_context_is_lost() {
    let Some(fake) = in_child("gpu::session::tests::an_unknown_error_is_a_fault_where_the_context_is_lost", &[]) else {
        return;
    };
    let gpu = Gpu::lease(&open(0), &[]).unwrap();
    let unknown = || DriverError(cudarc::driver::sys::CUresult::CUDA_ERROR_UNKNOWN);
    // On a thread that has no context yet.
    let survived = std::thread::scope(|scope| {
        scope.spawn(|| gpu.check::<()>("a call", Err(unknown())).unwrap_err()).join().unwrap()
    });
    assert_eq!((survived, gpu.fault()), (GpuError::Driver { call: "a call".into(), code: 999 }, None));
    fake.set_fault(0, 999);
    let lost = gpu.check::<()>("a call", Err(unknown())).unwrap_err();
    assert_eq!(lost, GpuError::Poisoned { device: 0, call: "a call".into(), code: 999 });
    assert_eq!(gpu.fault(), Some(lost));
}
