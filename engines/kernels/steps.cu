
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

__global__ void object_terms(const cplx* residual, const cplx* probes, const index* which, index top, index left,
                             index columns, const index* corner, const real* weight, cplx* num, int height, int width) {
    const int j = blockIdx.x;
    const index pixels = (index)height * width, at = first(corner, j, top, left, columns);
    const cplx *p = probes + which[j] * pixels, *r = residual + j * pixels;
    const real s = weight[j];
    for (index i = threadIdx.x; i < pixels; i += blockDim.x)
        add(num + at + i / width * columns + i % width, conj_times({s * p[i].x, s * p[i].y}, r[i]));
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

// Block x = pixels of the window of frame j, or of the whole canvas where j < 0. Windows of one launch never overlap.
__global__ void take_step(cplx* num, real* den, real step, cplx* out, const index* corner, int j, index top, index left,
                          index columns, int height, int width) {
    const index i = blockIdx.x * (index)blockDim.x + threadIdx.x;
    if (i >= (index)height * width) return;
    const index at = (j < 0 ? 0 : first(corner, j, top, left, columns)) + i / width * columns + i % width;
    const real d = den[at];
    if (!(d > 0)) return;
    const cplx n = num[at];
    out[at].x += step * n.x / d;
    out[at].y += step * n.y / d;
    num[at] = {0, 0};
    den[at] = 0;
}

} // extern "C"
