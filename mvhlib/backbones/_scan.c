/* Selective scan on a CPU, forward and backward, in plain C (GNU vector types, OpenMP).

   h[t, n] = exp(dt[t] A[n]) h[t-1, n] + dt[t] u[t] B[n, t];   y[t] = sum_n C[n, t] h[t, n] + D u[t]
   with dt = softplus(delta + bias), for every channel and sequence (Gu and Dao 2023, equation 2a).

   LANES channels sit side by side in one vector and go through time together, CHUNK tokens at a
   time. The forward pass stores the state at the start of each chunk and nothing else; the backward
   pass recomputes a chunk from there. Tensors come with strides, so that neither (B, D, L) nor
   (B, L, D) memory is copied. Every sum is taken in an order that depends on shapes alone: the
   result is the same for any number of threads. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__)
#include <immintrin.h>
#define LANES 16
#ifndef NEST
#define NEST 4 /* states advanced together: as many as the registers hold */
#endif
#elif defined(__AVX__)
#include <immintrin.h>
#define LANES 8
#define NEST 2
#else
#define LANES 4
#define NEST 2
#endif

#ifndef CHUNK
#define CHUNK 64 /* tokens; a multiple of every LANES */
#endif

typedef float vf __attribute__((vector_size(LANES * 4), may_alias));
typedef float vfu __attribute__((vector_size(LANES * 4), may_alias, aligned(4)));
typedef int32_t vi __attribute__((vector_size(LANES * 4), may_alias));

#define INLINE static inline __attribute__((always_inline))

typedef struct {
    const float *data;
    int64_t b, d, l; /* strides in elements: sequence, channel or state, token */
} Source;

typedef struct {
    float *data;
    int64_t b, d, l;
} Target;

typedef struct {
    int64_t batch, channels, length, states, groups, softplus, threads;
    Source u, delta, B, C, dy;
    const float *A, *D, *bias; /* A (channels, states) contiguous; D and bias may be NULL */
    Target y, du, ddelta;
    float *checkpoints; /* (batch, blocks, chunks, states, LANES), NULL when no gradient is wanted */
    float *dA;          /* (batch, blocks, states, LANES) */
    float *dB, *dC;     /* (groups, batch, states, length) */
    float *dD, *dbias;  /* (batch, blocks, LANES) */
} Scan;

INLINE vf splat(float value) { return value - (vf){0}; }

/* Larger and smaller of two; a NaN in `x` survives. */
#if LANES == 16
INLINE vf at_least(vf x, vf low) { return (vf)_mm512_max_ps((__m512)low, (__m512)x); }
INLINE vf at_most(vf x, vf high) { return (vf)_mm512_min_ps((__m512)high, (__m512)x); }
#elif LANES == 8
INLINE vf at_least(vf x, vf low) { return (vf)_mm256_max_ps((__m256)low, (__m256)x); }
INLINE vf at_most(vf x, vf high) { return (vf)_mm256_min_ps((__m256)high, (__m256)x); }
#else
INLINE vf pick(vi mask, vf a, vf b) { return (vf)((mask & (vi)a) | (~mask & (vi)b)); }
INLINE vf at_least(vf x, vf low) { return pick((vi)(x < low), low, x); }
INLINE vf at_most(vf x, vf high) { return pick((vi)(x > high), high, x); }
#endif

/* 2^x to 1.6e-7, exact at 0: a decay near one must not drift over a long memory. Outside
   [-100, 127] the nearest end is returned; the lower one keeps products out of the denormals,
   which are slow. */
INLINE vf exp2_lanes(vf x) {
    const vf magic = splat(12582912.0f); /* 1.5 * 2^23: adding it rounds to the nearest integer */
    x = at_most(at_least(x, splat(-100.0f)), splat(127.0f));
    vf shifted = x + magic;
    vf r = x - (shifted - magic);
    vf p = splat(0.001326472731307149f);
    p = p * r + 0.009671512991189957f;
    p = p * r + 0.05550733581185341f;
    p = p * r + 0.24022242426872253f;
    p = p * r + 0.6931470036506653f;
    p = p * r + 1.0f;
    return (vf)((vi)p + ((vi)shifted << 23));
}

#define LOG2E 1.44269504088896341f
#define LN2 0.69314718055994531f

/* softplus and its derivative; the logarithm by atanh, so that small results keep their digits. */
INLINE vf softplus_lanes(vf x, vf *slope) {
    vf magnitude = at_least(x, -x);
    vf z = exp2_lanes(magnitude * -LOG2E);
    vf inverse = 1.0f / (1.0f + z);
    vf positive = (vf)((vi)(x >= 0.0f) & (vi)splat(1.0f));
    *slope = (positive + (1.0f - positive) * z) * inverse;
    vf s = z / (2.0f + z), s2 = s * s;
    vf q = splat(0.2802446186542511f);
    q = q * s2 + 0.27999141812324524f;
    q = q * s2 + 0.4002169966697693f;
    q = q * s2 + 0.6666641235351562f;
    return at_least(x, splat(0.0f)) + (2.0f * s + s * s2 * q);
}

/* ---- tiles: (token, lane) blocks between memory of any strides and vectors ---- */

#if LANES == 16
#define LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif LANES == 8
#define LOW 0, 8, 1, 9, 2, 10, 3, 11
#define HIGH 4, 12, 5, 13, 6, 14, 7, 15
#else
#define LOW 0, 4, 1, 5
#define HIGH 2, 6, 3, 7
#endif
#if defined(__clang__)
#define ZIP(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define ZIP(a, b, ...) __builtin_shuffle(a, b, (vi){__VA_ARGS__})
#endif

INLINE void transpose(vf *rows) {
    vf other[LANES];
    for (int done = 1; done < LANES; done *= 2) {
        for (int i = 0; i < LANES / 2; i++) {
            other[2 * i] = ZIP(rows[i], rows[i + LANES / 2], LOW);
            other[2 * i + 1] = ZIP(rows[i], rows[i + LANES / 2], HIGH);
        }
        memcpy(rows, other, sizeof other);
    }
}

static void load_tile(vf *tile, const float *from, int64_t d, int64_t l, int lanes, int tokens) {
    int t = 0;
    if (lanes == LANES && d == 1) {
        for (; t < tokens; t++) tile[t] = *(const vfu *)(from + t * l);
    } else if (lanes == LANES && l == 1) {
        for (; t + LANES <= tokens; t += LANES) {
            vf rows[LANES];
            for (int i = 0; i < LANES; i++) rows[i] = *(const vfu *)(from + i * d + t);
            transpose(rows);
            for (int i = 0; i < LANES; i++) tile[t + i] = rows[i];
        }
    }
    for (; t < tokens; t++) {
        float row[LANES] = {0};
        for (int i = 0; i < lanes; i++) row[i] = from[i * d + t * l];
        tile[t] = *(const vfu *)row;
    }
}

static void store_tile(float *to, int64_t d, int64_t l, const vf *tile, int lanes, int tokens) {
    int t = 0;
    if (lanes == LANES && d == 1) {
        for (; t < tokens; t++) *(vfu *)(to + t * l) = tile[t];
    } else if (lanes == LANES && l == 1) {
        for (; t + LANES <= tokens; t += LANES) {
            vf rows[LANES];
            for (int i = 0; i < LANES; i++) rows[i] = tile[t + i];
            transpose(rows);
            for (int i = 0; i < LANES; i++) *(vfu *)(to + i * d + t) = rows[i];
        }
    }
    for (; t < tokens; t++) {
        float row[LANES];
        *(vfu *)row = tile[t];
        for (int i = 0; i < lanes; i++) to[i * d + t * l] = row[i];
    }
}

INLINE vf load_lanes(const float *from, int lanes) {
    float row[LANES] = {0};
    for (int i = 0; i < lanes; i++) row[i] = from[i];
    return *(const vfu *)row;
}

/* A (channels, states) -> (states, LANES), times log2(e): one multiplication less per step. */
static void load_rates(vf *rates, const Scan *s, int64_t first, int lanes) {
    for (int64_t n = 0; n < s->states; n++) {
        float row[LANES] = {0};
        for (int i = 0; i < lanes; i++) row[i] = s->A[(first + i) * s->states + n] * LOG2E;
        rates[n] = *(const vfu *)row;
    }
}

/* delta -> dt and d dt / d delta, in place of the tile */
INLINE void time_steps(const Scan *s, vf bias, vf *dt, vf *slope, int tokens) {
    for (int t = 0; t < tokens; t++) {
        vf x = dt[t] + bias;
        slope[t] = splat(1.0f);
        dt[t] = s->softplus ? softplus_lanes(x, &slope[t]) : x;
    }
}

/* ---- forward ---- */

INLINE void advance(const int nest, vf *state, const vf *rates, const vf *dt, const vf *dtu, vf *y,
                    const float *b, int64_t b_n, int64_t b_l, const float *c, int64_t c_n,
                    int64_t c_l, int tokens) {
    vf h[NEST], rate[NEST];
    for (int i = 0; i < nest; i++) h[i] = state[i], rate[i] = rates[i];
    for (int t = 0; t < tokens; t++) {
        vf sum = y[t];
        for (int i = 0; i < nest; i++) {
            h[i] = exp2_lanes(dt[t] * rate[i]) * h[i] + dtu[t] * b[i * b_n + t * b_l];
            sum += h[i] * c[i * c_n + t * c_l];
        }
        y[t] = sum;
    }
    for (int i = 0; i < nest; i++) state[i] = h[i];
}

static void forward_block(const Scan *s, int64_t sequence, int64_t block, vf *scratch) {
    const int64_t first = block * LANES, chunks = (s->length + CHUNK - 1) / CHUNK;
    const int64_t blocks = (s->channels + LANES - 1) / LANES, states = s->states;
    const int lanes = s->channels - first < LANES ? (int)(s->channels - first) : LANES;
    const vf bias = s->bias ? load_lanes(s->bias + first, lanes) : splat(0.0f);
    const vf skip = s->D ? load_lanes(s->D + first, lanes) : splat(0.0f);
    const float *u_from = s->u.data + sequence * s->u.b + first * s->u.d;
    const float *delta_from = s->delta.data + sequence * s->delta.b + first * s->delta.d;
    float *y_to = s->y.data + sequence * s->y.b + first * s->y.d;
    vf *state = scratch, *rates = scratch + states;
    vf u[CHUNK], dt[CHUNK], dtu[CHUNK], y[CHUNK], slope[CHUNK];

    load_rates(rates, s, first, lanes);
    memset(state, 0, states * sizeof(vf));
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
        const int64_t start = chunk * CHUNK;
        const int tokens = s->length - start < CHUNK ? (int)(s->length - start) : CHUNK;
        if (s->checkpoints)
            memcpy(s->checkpoints + ((sequence * blocks + block) * chunks + chunk) * states * LANES,
                   state, states * sizeof(vf));
        load_tile(u, u_from + start * s->u.l, s->u.d, s->u.l, lanes, tokens);
        load_tile(dt, delta_from + start * s->delta.l, s->delta.d, s->delta.l, lanes, tokens);
        time_steps(s, bias, dt, slope, tokens);
        for (int t = 0; t < tokens; t++) dtu[t] = dt[t] * u[t], y[t] = skip * u[t];
        const float *b = s->B.data + sequence * s->B.b + start * s->B.l;
        const float *c = s->C.data + sequence * s->C.b + start * s->C.l;
        int64_t n = 0;
        for (; n + NEST <= states; n += NEST)
            advance(NEST, state + n, rates + n, dt, dtu, y, b + n * s->B.d, s->B.d, s->B.l,
                    c + n * s->C.d, s->C.d, s->C.l, tokens);
        for (; n < states; n++)
            advance(1, state + n, rates + n, dt, dtu, y, b + n * s->B.d, s->B.d, s->B.l,
                    c + n * s->C.d, s->C.d, s->C.l, tokens);
        store_tile(y_to + start * s->y.l, s->y.d, s->y.l, y, lanes, tokens);
    }
}

/* ---- backward ---- */

typedef struct {
    vf u[CHUNK], dt[CHUNK], slope[CHUNK], dtu[CHUNK], dy[CHUNK];
    vf ddtu[CHUNK], ddt[CHUNK]; /* gradient to dt * u, and to dt by way of the decay, times log2(e) */
    vf before[CHUNK * NEST], decay[CHUNK * NEST];
} Tiles;

INLINE void retreat(const int nest, const vf *checkpoint, const vf *rates, vf *adjoint, vf *dA,
                    Tiles *w, vf *dB, vf *dC, const float *b, int64_t b_n, int64_t b_l,
                    const float *c, int64_t c_n, int64_t c_l, int tokens) {
    vf h[NEST], g[NEST], rate[NEST], da[NEST];
    for (int i = 0; i < nest; i++) h[i] = checkpoint[i], rate[i] = rates[i];
    for (int t = 0; t < tokens; t++)
        for (int i = 0; i < nest; i++) {
            vf a = exp2_lanes(w->dt[t] * rate[i]);
            w->before[t * nest + i] = h[i];
            w->decay[t * nest + i] = a;
            h[i] = a * h[i] + w->dtu[t] * b[i * b_n + t * b_l];
            dC[i * CHUNK + t] += w->dy[t] * h[i];
        }
    for (int i = 0; i < nest; i++) g[i] = adjoint[i], da[i] = dA[i];
    for (int t = tokens - 1; t >= 0; t--) {
        vf ddtu = w->ddtu[t], ddt = w->ddt[t];
        for (int i = 0; i < nest; i++) {
            g[i] += w->dy[t] * c[i * c_n + t * c_l];
            dB[i * CHUNK + t] += g[i] * w->dtu[t];
            ddtu += g[i] * b[i * b_n + t * b_l];
            g[i] *= w->decay[t * nest + i];
            vf exponent = g[i] * w->before[t * nest + i];
            da[i] += exponent * w->dt[t];
            ddt += exponent * rate[i];
        }
        w->ddtu[t] = ddtu, w->ddt[t] = ddt;
    }
    for (int i = 0; i < nest; i++) adjoint[i] = g[i], dA[i] = da[i];
}

/* Sum over lanes: (state, token, LANES) -> rows of `to` */
static void reduce_lanes(float *to, int64_t length, const vf *from, int64_t states, int64_t start,
                         int tokens) {
    for (int64_t n = 0; n < states; n++)
        for (int t = 0; t < tokens; t += LANES) {
            vf rows[LANES];
            for (int i = 0; i < LANES; i++) rows[i] = from[n * CHUNK + t + i];
            transpose(rows);
            for (int width = LANES / 2; width > 0; width /= 2)
                for (int i = 0; i < width; i++) rows[i] += rows[i + width];
            const int rest = tokens - t < LANES ? tokens - t : LANES;
            memcpy(to + n * length + start + t, rows, rest * sizeof(float));
        }
}

static void backward_group(const Scan *s, int64_t sequence, int64_t group, vf *scratch) {
    const int64_t chunks = (s->length + CHUNK - 1) / CHUNK, states = s->states;
    const int64_t blocks = (s->channels + LANES - 1) / LANES;
    const int64_t first_block = blocks * group / s->groups;
    const int64_t own = blocks * (group + 1) / s->groups - first_block;
    vf *rates = scratch, *adjoint = rates + own * states, *dA = adjoint + own * states;
    vf *dD = dA + own * states, *dbias = dD + own;
    vf *dB = dbias + own, *dC = dB + states * CHUNK;
    Tiles w;

    memset(adjoint, 0, (2 * states + 2) * own * sizeof(vf));
    for (int64_t k = 0; k < own; k++) {
        const int64_t first = (first_block + k) * LANES;
        const int lanes = s->channels - first < LANES ? (int)(s->channels - first) : LANES;
        load_rates(rates + k * states, s, first, lanes);
    }
    for (int64_t chunk = chunks - 1; chunk >= 0; chunk--) {
        const int64_t start = chunk * CHUNK;
        const int tokens = s->length - start < CHUNK ? (int)(s->length - start) : CHUNK;
        const float *b = s->B.data + sequence * s->B.b + start * s->B.l;
        const float *c = s->C.data + sequence * s->C.b + start * s->C.l;
        memset(dB, 0, 2 * states * CHUNK * sizeof(vf));
        for (int64_t k = 0; k < own; k++) {
            const int64_t block = first_block + k, first = block * LANES;
            const int lanes = s->channels - first < LANES ? (int)(s->channels - first) : LANES;
            const vf bias = s->bias ? load_lanes(s->bias + first, lanes) : splat(0.0f);
            const vf skip = s->D ? load_lanes(s->D + first, lanes) : splat(0.0f);
            const vf *checkpoint = (const vf *)(s->checkpoints) +
                                   ((sequence * blocks + block) * chunks + chunk) * states;
            load_tile(w.u, s->u.data + sequence * s->u.b + first * s->u.d + start * s->u.l,
                      s->u.d, s->u.l, lanes, tokens);
            load_tile(w.dt, s->delta.data + sequence * s->delta.b + first * s->delta.d +
                      start * s->delta.l, s->delta.d, s->delta.l, lanes, tokens);
            load_tile(w.dy, s->dy.data + sequence * s->dy.b + first * s->dy.d + start * s->dy.l,
                      s->dy.d, s->dy.l, lanes, tokens);
            time_steps(s, bias, w.dt, w.slope, tokens);
            for (int t = 0; t < tokens; t++) {
                w.dtu[t] = w.dt[t] * w.u[t];
                w.ddtu[t] = w.ddt[t] = splat(0.0f);
            }
            int64_t n = 0;
            for (; n + NEST <= states; n += NEST)
                retreat(NEST, checkpoint + n, rates + k * states + n, adjoint + k * states + n,
                        dA + k * states + n, &w, dB + n * CHUNK, dC + n * CHUNK, b + n * s->B.d,
                        s->B.d, s->B.l, c + n * s->C.d, s->C.d, s->C.l, tokens);
            for (; n < states; n++)
                retreat(1, checkpoint + n, rates + k * states + n, adjoint + k * states + n,
                        dA + k * states + n, &w, dB + n * CHUNK, dC + n * CHUNK, b + n * s->B.d,
                        s->B.d, s->B.l, c + n * s->C.d, s->C.d, s->C.l, tokens);
            for (int t = 0; t < tokens; t++) {
                dD[k] += w.dy[t] * w.u[t];
                w.ddt[t] = (w.ddt[t] * LN2 + w.ddtu[t] * w.u[t]) * w.slope[t];
                dbias[k] += w.ddt[t];
                w.ddtu[t] = w.ddtu[t] * w.dt[t] + skip * w.dy[t];
            }
            store_tile(s->du.data + sequence * s->du.b + first * s->du.d + start * s->du.l,
                       s->du.d, s->du.l, w.ddtu, lanes, tokens);
            store_tile(s->ddelta.data + sequence * s->ddelta.b + first * s->ddelta.d +
                       start * s->ddelta.l, s->ddelta.d, s->ddelta.l, w.ddt, lanes, tokens);
        }
        const int64_t row = (group * s->batch + sequence) * states * s->length;
        reduce_lanes(s->dB + row, s->length, dB, states, start, tokens);
        reduce_lanes(s->dC + row, s->length, dC, states, start, tokens);
    }
    const int64_t at = sequence * blocks + first_block;
    memcpy(s->dA + at * states * LANES, dA, own * states * sizeof(vf));
    memcpy(s->dD + at * LANES, dD, own * sizeof(vf));
    memcpy(s->dbias + at * LANES, dbias, own * sizeof(vf));
}

/* ---- entry points; 0 is success, 1 that there was no memory ---- */

int64_t scan_lanes(void) { return LANES; }
int64_t scan_chunk(void) { return CHUNK; }

static vf *new_scratch(int64_t vectors) {
    size_t bytes = (size_t)vectors * sizeof(vf);
    return aligned_alloc(sizeof(vf) < 64 ? 64 : sizeof(vf), (bytes + 63) / 64 * 64);
}

int scan_forward(const Scan *s) {
    const int64_t blocks = (s->channels + LANES - 1) / LANES;
    int failed = 0;
#pragma omp parallel num_threads(s->threads)
    {
        vf *scratch = new_scratch(2 * s->states);
#pragma omp for schedule(dynamic, 4)
        for (int64_t task = 0; task < s->batch * blocks; task++) {
            if (scratch) {
                forward_block(s, task / blocks, task % blocks, scratch);
            } else {
#pragma omp atomic write
                failed = 1;
            }
        }
        free(scratch);
    }
    return failed;
}

int scan_backward(const Scan *s) {
    const int64_t blocks = (s->channels + LANES - 1) / LANES;
    const int64_t most = (blocks + s->groups - 1) / s->groups;
    int failed = 0;
#pragma omp parallel num_threads(s->threads)
    {
        vf *scratch = new_scratch(most * (3 * s->states + 2) + 2 * s->states * CHUNK);
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < s->batch * s->groups; task++) {
            if (scratch) {
                backward_group(s, task / s->groups, task % s->groups, scratch);
            } else {
#pragma omp atomic write
                failed = 1;
            }
        }
        free(scratch);
    }
    return failed;
}
