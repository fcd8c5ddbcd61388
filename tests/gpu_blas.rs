//! cuBLAS through cudarc, on the stand-ins for libcublas and libcuda.

#![allow(unsafe_code)]

#[path = "common/fake_cuda.rs"]
mod fake_cuda;

use cudarc::{
    cublas::{
        CudaBlas, Gemm, GemmConfig, StridedBatchedConfig, sys::cublasOperation_t as Op, sys::cublasStatus_t as Status,
    },
    driver::CudaContext,
};
use fake_cuda::{Fake, path};
use libloading::Library;

const SEED: u64 = 11;

/// The test in a process of its own, with the stand-in for libcublas, too: cudarc finds what is open under its name.
fn in_child(test: &str) -> Option<Fake> {
    let fake = fake_cuda::in_child(test, &[])?;
    // SAFETY: the stand-in runs nothing when it is opened.
    std::mem::forget(unsafe { Library::new(path("fake_cublas")) }.unwrap());
    Some(fake)
}

/// Whole numbers, so that sums are exact in any order.
fn numbers(rng: &mut fastrand::Rng, count: usize) -> Vec<f32> {
    (0..count).map(|_| rng.i32(-8..=8) as f32).collect()
}

/// Where an element of a matrix, or of its transpose, stands in memory.
fn place(operation: Op, leading: usize, row: usize, column: usize) -> usize {
    match operation {
        Op::CUBLAS_OP_N => column * leading + row,
        _ => row * leading + column,
    }
}

#[test]
fn products_of_all_shapes_and_transposes_are_those_of_a_plain_loop() {
    let Some(cuda) = in_child("products_of_all_shapes_and_transposes_are_those_of_a_plain_loop") else { return };
    println!("seed {SEED}");
    let mut rng = fastrand::Rng::with_seed(SEED);
    let context = CudaContext::new(0).unwrap();
    let stream = context.new_stream().unwrap();
    let blas = CudaBlas::new(stream.clone()).unwrap();
    for _ in 0..300 {
        let [m, n, k] = [(); 3].map(|()| rng.usize(1..=9));
        let batch = rng.usize(1..=3);
        let [transa, transb] = [(); 2].map(|()| if rng.bool() { Op::CUBLAS_OP_N } else { Op::CUBLAS_OP_T });
        let mut layout = |operation, rows, columns| {
            let (rows, columns) = if operation == Op::CUBLAS_OP_N { (rows, columns) } else { (columns, rows) };
            let leading = rows + rng.usize(0..=2);
            (leading, leading * columns + rng.usize(0..=2))
        };
        let (lda, stride_a) = layout(transa, m, k);
        let (ldb, stride_b) = layout(transb, k, n);
        let (ldc, stride_c) = layout(Op::CUBLAS_OP_N, m, n);
        let [alpha, beta] = [(); 2].map(|()| rng.i32(-2..=2) as f32);
        let a = numbers(&mut rng, batch * stride_a);
        let b = numbers(&mut rng, batch * stride_b);
        let mut c = match beta {
            // It must not matter then.
            0.0 => vec![f32::NAN; batch * stride_c],
            _ => numbers(&mut rng, batch * stride_c),
        };

        let (on_device_a, on_device_b) = (stream.clone_htod(&a).unwrap(), stream.clone_htod(&b).unwrap());
        let mut on_device_c = stream.clone_htod(&c).unwrap();
        let [m_, n_, k_, lda_, ldb_, ldc_] = [m, n, k, lda, ldb, ldc].map(|n| i32::try_from(n).unwrap());
        let gemm = GemmConfig { transa, transb, m: m_, n: n_, k: k_, alpha, lda: lda_, ldb: ldb_, beta, ldc: ldc_ };
        // SAFETY: the matrices are as long as the configuration says.
        unsafe {
            match batch {
                1 => blas.gemm(gemm, &on_device_a, &on_device_b, &mut on_device_c).unwrap(),
                _ => {
                    let [stride_a, stride_b, stride_c] =
                        [stride_a, stride_b, stride_c].map(|n| i64::try_from(n).unwrap());
                    let config = StridedBatchedConfig {
                        gemm,
                        batch_size: i32::try_from(batch).unwrap(),
                        stride_a,
                        stride_b,
                        stride_c,
                    };
                    blas.gemm_strided_batched(config, &on_device_a, &on_device_b, &mut on_device_c).unwrap();
                }
            }
        }
        let found = stream.clone_dtoh(&on_device_c).unwrap();
        stream.synchronize().unwrap();

        for product in 0..batch {
            for row in 0..m {
                for column in 0..n {
                    let sum: f32 = (0..k)
                        .map(|inner| {
                            a[product * stride_a + place(transa, lda, row, inner)]
                                * b[product * stride_b + place(transb, ldb, inner, column)]
                        })
                        .sum();
                    let c = &mut c[product * stride_c + column * ldc + row];
                    *c = alpha * sum + if beta == 0.0 { 0.0 } else { beta * *c };
                }
            }
        }
        // As bits: what lies between the columns stays, also where it is no number.
        let bits = |numbers: &[f32]| numbers.iter().map(|n| (n + 0.0).to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&found), bits(&c), "{gemm:?}, {batch} products");
    }
    assert_eq!(cuda.races(), "");
}

#[test]
fn wrong_shapes_are_errors() {
    let Some(_cuda) = in_child("wrong_shapes_are_errors") else { return };
    let context = CudaContext::new(0).unwrap();
    let stream = context.new_stream().unwrap();
    let blas = CudaBlas::new(stream.clone()).unwrap();
    let (a, b) = (stream.alloc_zeros::<f64>(6).unwrap(), stream.alloc_zeros::<f64>(6).unwrap());
    let mut c = stream.alloc_zeros::<f64>(4).unwrap();
    let good = GemmConfig {
        transa: Op::CUBLAS_OP_N,
        transb: Op::CUBLAS_OP_N,
        m: 2,
        n: 2,
        k: 3,
        alpha: 1.0,
        lda: 2,
        ldb: 3,
        beta: 0.0,
        ldc: 2,
    };
    // SAFETY: the first is right, and the stand-in refuses the others.
    let mut status = |config| unsafe { blas.gemm(config, &a, &b, &mut c) }.map_err(|error| error.0);
    assert_eq!(status(good), Ok(()));
    assert_eq!(status(GemmConfig { lda: 1, ..good }), Err(Status::CUBLAS_STATUS_INVALID_VALUE));
    assert_eq!(status(GemmConfig { m: -1, ..good }), Err(Status::CUBLAS_STATUS_INVALID_VALUE));
    assert_eq!(
        status(GemmConfig { ldc: 3, ..good }),
        Err(Status::CUBLAS_STATUS_EXECUTION_FAILED),
        "beyond the memory of C"
    );
}

#[test]
fn the_checker_sees_what_products_read_and_write() {
    let Some(cuda) = in_child("the_checker_sees_what_products_read_and_write") else { return };
    let context = CudaContext::new(0).unwrap();
    // SAFETY: nothing runs at the same time on the stand-in, and the missing order is what this is about.
    unsafe { context.disable_event_tracking() };
    let (writer, stream) = (context.new_stream().unwrap(), context.new_stream().unwrap());
    let blas = CudaBlas::new(stream.clone()).unwrap();
    let config = GemmConfig {
        transa: Op::CUBLAS_OP_N,
        transb: Op::CUBLAS_OP_N,
        m: 2,
        n: 2,
        k: 2,
        alpha: 1.0f32,
        lda: 2,
        ldb: 2,
        beta: 0.0,
        ldc: 2,
    };
    let (a, mut c) = (writer.clone_htod(&[1.0f32; 4]).unwrap(), stream.alloc_zeros::<f32>(4).unwrap());
    // SAFETY: four numbers each.
    unsafe { blas.gemm(config, &a, &a, &mut c) }.unwrap();
    let races = cuda.races();
    assert!(races.contains("sgemm") && races.contains("not ordered after write"), "{races}");

    stream.join(&writer).unwrap();
    // SAFETY: as above.
    unsafe { blas.gemm(config, &a, &a, &mut c) }.unwrap();
    assert_eq!(cuda.races(), "");
}
