
// Kernels of stochastic engines; they stand behind those of `projection.cu`, whose types and helpers they use.
extern "C" {

__global__ void residual(int kept, cplx* waves, cplx* projected, const cplx* probes, const index* which, const cplx* obj,
                         index top, index left, index columns, const index* corner, const real* weight, real a, real b,
                         double* change, int height, int width) {
    const int j = blockIdx.x;
    const index pixels = (index)height * width, at = first(corner, j, top, left, columns);
    const cplx* p = probes + which[j] * pixels;
    cplx *f = projected + j * pixels, *w = waves + j * pixels;
    const real s = weight[j];
    double sum = 0;
    for (index i = threadIdx.x; i < pixels; i += blockDim.x) {
        const cplx m = times({s * p[i].x, s * p[i].y}, obj[at + i / width * columns + i % width]);
        const cplx old = kept ? w[i] : m;
        const cplx step = {b * f[i].x + a * m.x - (a + b) * old.x, b * f[i].y + a * m.y - (a + b) * old.y};
        const cplx fresh = {old.x + step.x, old.y + step.y};
        if (kept) w[i] = fresh;
        f[i] = {fresh.x - m.x, fresh.y - m.y};
        sum += norm(step);
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) change[j] += sum / pixels;
}

__global__ void object_step(const cplx* residual, const cplx* probes, const index* which, cplx* obj, index top, index left,
                            index columns, const index* corner, const real* weight, const real* den, index above,
                            index beside, index across, real step, int height, int width) {
    const int j = blockIdx.x;
    const index pixels = (index)height * width;
    const index at = first(corner, j, top, left, columns), within = first(corner, j, above, beside, across);
    const cplx *p = probes + which[j] * pixels, *r = residual + j * pixels;
    for (index i = threadIdx.x; i < pixels; i += blockDim.x) {
        const real d = den[within + i / width * across + i % width];
        if (!(d > 0)) continue;
        const real s = step * weight[j] / d;
        const cplx term = conj_times(p[i], r[i]);
        add(obj + at + i / width * columns + i % width, {s * term.x, s * term.y});
    }
}

__global__ void norm_sums(const real* powers, const real* peak, real share, index top, index left, index columns,
                          const index* corner, real* den, int height, int width) {
    const int j = blockIdx.x;
    const index pixels = (index)height * width, at = first(corner, j, top, left, columns);
    const real* p = powers + j * pixels;
    const real flat = (1 - share) * peak[j];
    for (index i = threadIdx.x; i < pixels; i += blockDim.x)
        atomicAdd(den + at + i / width * columns + i % width, share * p[i] + flat);
}

__global__ void take_step(const cplx* num, const real* den, real step, cplx* out, index pixels) {
    const index i = blockIdx.x * (index)blockDim.x + threadIdx.x;
    if (i >= pixels || !(den[i] > 0)) return;
    out[i].x += step * num[i].x / den[i];
    out[i].y += step * num[i].y / den[i];
}

} // extern "C"
