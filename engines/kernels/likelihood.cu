// The kernels of a likelihood; their contract is `ptystream.engines.kernels.Kernels`. Follows projection.cu.

#define EPSILON ((real)1e-6)
enum { GAUSSIAN, POISSON, EUCLID };

__device__ __forceinline__ double likelihood_of(int kind, real m, real n, real w, real level) {
    if (kind == GAUSSIAN) return w / (1 / level + n) * (m - n) * (m - n);
    m += EPSILON;
    if (kind == POISSON) return w * (m - n - (n > 0 ? n * log(m / n) : (real)0));
    const real root = sqrt(m) - sqrt(n);
    return w * root * root;
}

__device__ __forceinline__ real slope_of(int kind, real m, real n, real w, real level) {
    if (kind == GAUSSIAN) return 2 * w / (1 / level + n) * (m - n);
    m += EPSILON;
    return kind == POISSON ? w * (1 - n / m) : w * (sqrt(m) - sqrt(n)) / sqrt(m);
}

// Half the second derivative.
__device__ __forceinline__ real half_of(int kind, real m, real n, real w, real level) {
    if (kind == GAUSSIAN) return w / (1 / level + n);
    m += EPSILON;
    return kind == POISSON ? w * n / (m * m) / 2 : w * sqrt(n / m) / m / 4;
}

extern "C" {

__global__ void likelihood(cplx* f, const count* counts, const index* row, const real* trust, real limit, int kind,
                           real level, int floating, real* scale, double* cost, int pods, int frames, index pixels) {
    const int j = blockIdx.x;
    const index stride = frames * pixels;
    cplx* g = f + j * pixels;
    const count* counted = counts + row[j] * pixels;
    real c = scale[j];
    if (floating) {
        double top = 0, bottom = 0;
        for (index i = threadIdx.x; i < pixels; i += blockDim.x) {
            const real n = (real)counted[i];
            if (!(n < limit)) continue;
            const real m = intensity_of(g, i, pods, stride);
            const real w = kind == GAUSSIAN ? trust[i] / (1 / level + n) : trust[i];
            top += kind == GAUSSIAN ? w * m * n : kind == POISSON ? w * n : w * sqrt(m * n);
            bottom += kind == GAUSSIAN ? w * m * m : w * m;
        }
        top = block_sum(top);
        bottom = block_sum(bottom);
        c = top > 0 && bottom > 0 ? (real)(top / bottom) : (real)1;
        if (kind == EUCLID) c *= c;
    }
    double sum = 0;
    for (index i = threadIdx.x; i < pixels; i += blockDim.x) {
        const real n = (real)counted[i];
        real factor = 0;
        if (n < limit) {
            const real m = c * intensity_of(g, i, pods, stride), w = level * trust[i];
            sum += likelihood_of(kind, m, n, w, level);
            factor = c * slope_of(kind, m, n, w, level);
        }
        for (int k = 0; k < pods; ++k) {
            g[k * stride + i].x *= factor;
            g[k * stride + i].y *= factor;
        }
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) {
        cost[j] = sum;
        scale[j] = c;
    }
}

__global__ void line(const cplx* f, const cplx* a, const cplx* b, int full, const count* counts, const index* row,
                     const real* trust, real limit, int kind, real level, const real* scale, int every,
                     double* coefficients, int pods, int frames, index pixels) {
    const int j = blockIdx.x;
    const index stride = frames * pixels, here = j * pixels;
    const count* counted = counts + row[j] * pixels;
    const real c = scale[j];
    double sums[9] = {0, 0, 0, 0, 0, 0, 0, 0, 0};
    for (index i = threadIdx.x; i < pixels; i += blockDim.x) {
        const real n = (real)counted[i];
        if (!(n < limit)) continue;
        real m = 0, p = 0, q = 0, r = 0, s = 0;
        for (int k = 0; k < pods; ++k) {
            const index at = here + k * stride + i;
            const cplx u = f[at], v = a[at];
            m += c * norm(u);
            p += 2 * c * (u.x * v.x + u.y * v.y);
            q += c * norm(v);
            if (!full) continue;
            const cplx w = b[at];
            q += 2 * c * (u.x * w.x + u.y * w.y);
            r += 2 * c * (v.x * w.x + v.y * w.y);
            s += c * norm(w);
        }
        const real w = level * trust[i], u = slope_of(kind, m, n, w, level), v = half_of(kind, m, n, w, level);
        sums[0] += v * p * p;
        sums[1] += u * p;
        sums[2] += u * q + v * p * p;
        if (!every) continue;
        sums[3] += u * r + 2 * v * p * q;
        sums[4] += u * s + v * (q * q + 2 * p * r);
        sums[5] += 2 * v * (p * s + q * r);
        sums[6] += v * (r * r + 2 * q * s);
        sums[7] += 2 * v * r * s;
        sums[8] += v * s * s;
    }
    for (int k = 0; k < 9; ++k) {
        const double sum = block_sum(sums[k]);
        if (threadIdx.x == 0) coefficients[9 * j + k] = sum;
    }
}

} // extern "C"
