// The GPU form of the kernels; their contract is `ptystream.engines.kernels.Kernels`.
// Compiled with -DREAL=float|double and -DCOUNT=<type of the slab>. Blocks have a power of two of threads.
// Per-frame kernels: block x = frame; per-pixel sums: block x = pixels, block y = a run of frames.

typedef REAL real;
typedef COUNT count;
typedef long long index;

struct __align__(2 * sizeof(real)) cplx { real x, y; };

__device__ __forceinline__ cplx times(cplx a, cplx b) { return {a.x * b.x - a.y * b.y, a.x * b.y + a.y * b.x}; }
__device__ __forceinline__ cplx conj_times(cplx a, cplx b) { return {a.x * b.x + a.y * b.y, a.x * b.y - a.y * b.x}; }
__device__ __forceinline__ real norm(cplx a) { return a.x * a.x + a.y * a.y; }

__device__ double block_sum(double value) {
    __shared__ double part[1024];
    __syncthreads();
    part[threadIdx.x] = value;
    __syncthreads();
    for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
        __syncthreads();
    }
    return part[0];
}

__device__ __forceinline__ void add(cplx* to, cplx value) {
    atomicAdd(&to->x, value.x);
    atomicAdd(&to->y, value.y);
}

// First object pixel of frame j on a canvas `columns` wide.
__device__ __forceinline__ index first(const index* corner, int j, index top, index left, index columns) {
    return (corner[2 * j] - top) * columns + corner[2 * j + 1] - left;
}

__device__ __forceinline__ real intensity_of(const cplx* f, index pixel, int pods, index stride) {
    real sum = 0;
    for (int k = 0; k < pods; ++k) sum += norm(f[k * stride + pixel]);
    return sum;
}

extern "C" {

__global__ void form(const cplx* waves, const cplx* probes, const index* which, const cplx* obj, index top, index left,
                     index columns, const index* corner, const real* weight, real c, cplx* out, int height, int width) {
    const int j = blockIdx.x;
    const index pixels = (index)height * width, at = first(corner, j, top, left, columns);
    const cplx *p = probes + which[j] * pixels, *w = waves + j * pixels;
    const real s = c * weight[j], d = 1 - c;
    for (index i = threadIdx.x; i < pixels; i += blockDim.x) {
        const cplx m = times(p[i], obj[at + i / width * columns + i % width]);
        out[j * pixels + i] = {d * w[i].x + s * m.x, d * w[i].y + s * m.y};
    }
}

__global__ void model(const cplx* probes, const index* which, const cplx* obj, index top, index left, index columns,
                      const index* corner, const real* weight, cplx* out, int height, int width) {
    const int j = blockIdx.x;
    const index pixels = (index)height * width, at = first(corner, j, top, left, columns);
    const cplx* p = probes + which[j] * pixels;
    const real s = weight[j];
    for (index i = threadIdx.x; i < pixels; i += blockDim.x) {
        const cplx m = times(p[i], obj[at + i / width * columns + i % width]);
        out[j * pixels + i] = {s * m.x, s * m.y};
    }
}

__global__ void modulus(cplx* f, const count* counts, const index* row, const unsigned char* mask, real limit,
                        double bound, real epsilon, double* error, int pods, int frames, index pixels) {
    const int j = blockIdx.x;
    const index stride = frames * pixels;
    cplx* g = f + j * pixels;
    const count* n = counts + row[j] * pixels;
    double sum = 0, seen = 0;
    for (index i = threadIdx.x; i < pixels; i += blockDim.x) {
        const real value = (real)n[i];
        if (mask[i] && value < limit) {
            const real difference = sqrt(intensity_of(g, i, pods, stride)) - sqrt(value);
            sum += difference * difference;
            seen += 1;
        }
    }
    sum = block_sum(sum);
    seen = block_sum(seen);
    const double mean = seen > 0 ? sum / seen : 0;
    if (threadIdx.x == 0) error[j] = mean;
    if (bound >= 0 && mean <= bound) return;
    const real r = bound > 0 ? (real)sqrt(bound / mean) : (real)0;
    for (index i = threadIdx.x; i < pixels; i += blockDim.x) {
        const real value = (real)n[i];
        if (!(mask[i] && value < limit)) continue;
        const real a = sqrt(intensity_of(g, i, pods, stride)), wanted = sqrt(value);
        const real factor = (wanted + r * (a - wanted)) / (a + epsilon);
        for (int k = 0; k < pods; ++k) {
            g[k * stride + i].x *= factor;
            g[k * stride + i].y *= factor;
        }
    }
}

__global__ void misfit(const cplx* f, const count* counts, const index* row, const unsigned char* mask, real limit,
                       real* intensity, double* amplitude, double* photon, double* valid, int pods, int frames,
                       index pixels) {
    const int j = blockIdx.x;
    const index stride = frames * pixels;
    const cplx* g = f + j * pixels;
    const count* n = counts + row[j] * pixels;
    double s = 0, t = 0, v = 0;
    for (index i = threadIdx.x; i < pixels; i += blockDim.x) {
        const real value = (real)n[i], m = intensity_of(g, i, pods, stride);
        if (j == frames - 1) intensity[i] = m;
        if (mask[i] && value < limit) {
            const real root = sqrt(m) - sqrt(value);
            s += root * root;
            t += (m - value) * (m - value) / (value + 1);
            v += 1;
        }
    }
    s = block_sum(s);
    t = block_sum(t);
    v = block_sum(v);
    if (threadIdx.x == 0) {
        amplitude[j] = s;
        photon[j] = t;
        valid[j] = v;
    }
}

__global__ void update(cplx* waves, const cplx* projected, const cplx* probes, const index* which, const cplx* obj,
                       index top, index left, index columns, const index* corner, const real* weight, real a, real b,
                       double* change, int accumulate, cplx* num, real* den, int height, int width) {
    const int j = blockIdx.x;
    const index pixels = (index)height * width, at = first(corner, j, top, left, columns);
    const cplx *p = probes + which[j] * pixels, *f = projected + j * pixels;
    cplx* w = waves + j * pixels;
    const real s = weight[j];
    double sum = 0;
    for (index i = threadIdx.x; i < pixels; i += blockDim.x) {
        const index o = at + i / width * columns + i % width;
        const cplx m = times(p[i], obj[o]), old = w[i];
        const cplx step = {b * f[i].x + a * s * m.x - (a + b) * old.x, b * f[i].y + a * s * m.y - (a + b) * old.y};
        const cplx fresh = {old.x + step.x, old.y + step.y};
        w[i] = fresh;
        sum += norm(step);
        if (accumulate) {
            const cplx view = {s * p[i].x, s * p[i].y};
            add(num + o, conj_times(view, fresh));
            atomicAdd(den + o, norm(view));
        }
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) change[j] += sum / pixels;
}

__global__ void object_sums(const cplx* waves, const cplx* probes, const index* which, index top, index left,
                            index columns, const index* corner, const real* weight, cplx* num, real* den, int height,
                            int width) {
    const int j = blockIdx.x;
    const index pixels = (index)height * width, at = first(corner, j, top, left, columns);
    const cplx *p = probes + which[j] * pixels, *w = waves + j * pixels;
    const real s = weight[j];
    for (index i = threadIdx.x; i < pixels; i += blockDim.x) {
        const index o = at + i / width * columns + i % width;
        const cplx view = {s * p[i].x, s * p[i].y};
        add(num + o, conj_times(view, w[i]));
        atomicAdd(den + o, norm(view));
    }
}

__global__ void illumination(const cplx* probes, const index* which, index top, index left, index columns,
                             const index* corner, const real* weight, real* den, int height, int width) {
    const int j = blockIdx.x;
    const index pixels = (index)height * width, at = first(corner, j, top, left, columns);
    const cplx* p = probes + which[j] * pixels;
    const real s = weight[j] * weight[j];
    for (index i = threadIdx.x; i < pixels; i += blockDim.x)
        atomicAdd(den + at + i / width * columns + i % width, s * norm(p[i]));
}

// A thread keeps one probe pixel and walks through a run of frames: one atomic addition per run and layer.
__global__ void probe_sums(const cplx* waves, const cplx* obj, index top, index left, index columns, const index* corner,
                           const real* weight, const index* layer, cplx* num, real* den, int frames, int run, int height,
                           int width) {
    const index pixels = (index)height * width, i = blockIdx.x * (index)blockDim.x + threadIdx.x;
    if (i >= pixels) return;
    const index inside = i / width * columns + i % width;
    const int begin = blockIdx.y * run, end = begin + run < frames ? begin + run : frames;
    cplx n = {0, 0};
    real d = 0;
    for (int j = begin; j < end; ++j) {
        const cplx o = obj[first(corner, j, top, left, columns) + inside];
        const cplx view = {weight[j] * o.x, weight[j] * o.y}, term = conj_times(view, waves[j * pixels + i]);
        n.x += term.x;
        n.y += term.y;
        d += norm(view);
        if (j + 1 == end || layer[j + 1] != layer[j]) {
            add(num + layer[j] * pixels + i, n);
            atomicAdd(den + layer[j] * pixels + i, d);
            n.x = n.y = d = 0;
        }
    }
}

__global__ void probe_terms(const cplx* waves, const cplx* obj, index top, index left, index columns, const index* corner,
                            const real* weight, cplx* num, real* den, int height, int width) {
    const int j = blockIdx.x;
    const index pixels = (index)height * width, at = first(corner, j, top, left, columns);
    for (index i = threadIdx.x; i < pixels; i += blockDim.x) {
        const cplx o = obj[at + i / width * columns + i % width], view = {weight[j] * o.x, weight[j] * o.y};
        num[j * pixels + i] = conj_times(view, waves[j * pixels + i]);
        den[j * pixels + i] = norm(view);
    }
}

} // extern "C"

// The four pixels and weights of a bilinear shift on a periodic frame.
struct Shift {
    real a, b, c, d;
    index near_near, far_near, near_far, far_far;
};

__device__ __forceinline__ Shift shift_to(index i, real dy, real dx, int height, int width) {
    const int y = i / width, x = i % width;
    const int v = dy > 0 ? (y == 0 ? height - 1 : y - 1) : (y == height - 1 ? 0 : y + 1);
    const int u = dx > 0 ? (x == 0 ? width - 1 : x - 1) : (x == width - 1 ? 0 : x + 1);
    const real ay = fabs(dy), ax = fabs(dx);
    return {(1 - ay) * (1 - ax), ay * (1 - ax), (1 - ay) * ax, ay * ax,
            i, (index)v * width + x, (index)y * width + u, (index)v * width + u};
}

__device__ __forceinline__ real taken(const real* from, Shift s) {
    return s.a * from[s.near_near] + s.b * from[s.far_near] + s.c * from[s.near_far] + s.d * from[s.far_far];
}

__device__ __forceinline__ cplx taken(const cplx* from, Shift s) {
    const cplx a = from[s.near_near], b = from[s.far_near], c = from[s.near_far], d = from[s.far_far];
    return {s.a * a.x + s.b * b.x + s.c * c.x + s.d * d.x, s.a * a.y + s.b * b.y + s.c * c.y + s.d * d.y};
}

__device__ __forceinline__ void add(real* to, real value) { atomicAdd(to, value); }
__device__ __forceinline__ void grow(real& sum, real value) { sum += value; }
__device__ __forceinline__ void grow(cplx& sum, cplx value) { sum.x += value.x; sum.y += value.y; }

template <class T>
__device__ __forceinline__ void add_shifted(const T* stack, const index* layer, const real* remainder, T* out, int frames,
                                            int run, int height, int width) {
    const index pixels = (index)height * width, i = blockIdx.x * (index)blockDim.x + threadIdx.x;
    if (i >= pixels) return;
    const int begin = blockIdx.y * run, end = begin + run < frames ? begin + run : frames;
    T sum = {};
    for (int j = begin; j < end; ++j) {
        grow(sum, taken(stack + j * pixels, shift_to(i, remainder[2 * j], remainder[2 * j + 1], height, width)));
        if (j + 1 == end || layer[j + 1] != layer[j]) {
            add(out + layer[j] * pixels + i, sum);
            sum = {};
        }
    }
}

extern "C" {

__global__ void shifted_views(const cplx* probes, const index* layer, const real* remainder, cplx* out, int height,
                              int width) {
    const int j = blockIdx.x;
    const index pixels = (index)height * width;
    for (index i = threadIdx.x; i < pixels; i += blockDim.x)
        out[j * pixels + i] = taken(probes + layer[j] * pixels,
                                    shift_to(i, remainder[2 * j], remainder[2 * j + 1], height, width));
}

__global__ void add_shifted_real(const real* stack, const index* layer, const real* remainder, real* out, int frames,
                                 int run, int height, int width) {
    add_shifted(stack, layer, remainder, out, frames, run, height, width);
}

__global__ void add_shifted_complex(const cplx* stack, const index* layer, const real* remainder, cplx* out, int frames,
                                    int run, int height, int width) {
    add_shifted(stack, layer, remainder, out, frames, run, height, width);
}

} // extern "C"
