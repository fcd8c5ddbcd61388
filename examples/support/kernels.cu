// The kernels of the GPU examples. `kernels.ptx` is made from this by `scripts/kernels-to-ptx`; the programs embed
// that, so they need no compiler. Matrices are row-major.

#ifndef KERNEL // a test compiles this for the CPU
#define KERNEL extern "C" __global__
#endif
#define INDEX (blockIdx.x * blockDim.x + threadIdx.x)

// y += a x
KERNEL void saxpy(float a, const float* __restrict__ x, float* __restrict__ y, int n) {
    int i = INDEX;
    if (i < n) y[i] = a * x[i] + y[i];
}

// Every element becomes `value`.
KERNEL void fill(float value, float* __restrict__ y, int n) {
    int i = INDEX;
    if (i < n) y[i] = value;
}

// x = max(x + bias, 0), the bias of its column: a layer with rectifiers, after the product of matrices.
KERNEL void bias_relu(float* __restrict__ x, const float* __restrict__ bias, int rows, int columns) {
    int i = INDEX;
    if (i < rows * columns) x[i] = fmaxf(x[i] + bias[i % columns], 0.0f);
}

// error = 0 where the rectifier was off
KERNEL void relu_gradient(float* __restrict__ error, const float* __restrict__ units, int n) {
    int i = INDEX;
    if (i < n && units[i] == 0.0f) error[i] = 0.0f;
}

// Adds the bias of its column, then makes each row a distribution. One thread for each row: rows are short.
KERNEL void bias_softmax(float* __restrict__ x, const float* __restrict__ bias, int rows, int columns) {
    int row = INDEX;
    if (row >= rows) return;
    float* v = x + row * columns;
    float largest = __int_as_float(0xff800000), sum = 0.0f; // from minus infinity
    for (int j = 0; j < columns; j++) largest = fmaxf(largest, v[j] += bias[j]);
    for (int j = 0; j < columns; j++) sum += v[j] = expf(v[j] - largest);
    for (int j = 0; j < columns; j++) v[j] /= sum;
}

// From probabilities to the gradient of the mean cross-entropy by what the softmax was taken of.
KERNEL void cross_entropy_gradient(float* __restrict__ p, const int* __restrict__ labels, int rows, int columns) {
    int i = INDEX;
    if (i < rows * columns) p[i] = (p[i] - (i % columns == labels[i / columns] ? 1.0f : 0.0f)) / rows;
}

// sums[j] = the sum of column j. One thread for each column.
KERNEL void column_sums(const float* __restrict__ x, float* __restrict__ sums, int rows, int columns) {
    int j = INDEX;
    if (j >= columns) return;
    float sum = 0.0f;
    for (int row = 0; row < rows; row++) sum += x[row * columns + j];
    sums[j] = sum;
}

// Stochastic gradient descent with momentum and weight decay. The rate is read on the device, so that a captured
// graph can be launched again with another.
KERNEL void sgd(float* __restrict__ parameters, float* __restrict__ velocity, const float* __restrict__ gradient,
                               const float* __restrict__ rate, float momentum, float l2, int n) {
    int i = INDEX;
    if (i >= n) return;
    float v = momentum * velocity[i] - *rate * (gradient[i] + l2 * parameters[i]);
    velocity[i] = v;
    parameters[i] += v;
}

// Writes where nothing is. The device's context does not survive that.
KERNEL void trap() {
    *(volatile int*)8 = 1;
}
