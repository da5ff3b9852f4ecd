/* Selective scan on a CPU, forward and backward, in plain C (GNU vector types, OpenMP).

   h[t, n] = exp(dt[t] A[n]) h[t-1, n] + dt[t] u[t] B[n, t];   y[t] = sum_n C[n, t] h[t, n] + D u[t]
   with dt = softplus(delta + bias), for every channel and sequence (Gu and Dao 2023, equation 2a).
   Where A is complex, so is h, and twice the real part of the sum is taken.

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

/* What is complex: nothing; A; or A, B and C. A complex number is two floats in memory, its real
   and its imaginary part, and two vectors in registers. */
enum { REAL, POLES, ALL };
#define RATES(kind) ((kind) == REAL ? 1 : 3)    /* vectors that a rate takes, see load_rates */
#define PARTS(kind) ((kind) == REAL ? 1 : 2)    /* of a state, and of A in memory */
#define BC_PARTS(kind) ((kind) == ALL ? 2 : 1)  /* of B and C */
#define NEST_OF(kind) (NEST / PARTS(kind))

typedef struct {
    const float *data;
    int64_t b, d, l; /* strides in floats: sequence, channel or state, token */
} Source;

typedef struct {
    float *data;
    int64_t b, d, l;
} Target;

typedef struct {
    int64_t batch, channels, length, states, groups, softplus, threads, kind;
    Source u, delta, B, C, dy;
    const float *A, *D, *bias; /* A (channels, states) contiguous; D and bias may be NULL */
    Target y, du, ddelta;
    /* All real parts of a state, or of a gradient, lie before all imaginary ones. */
    float *checkpoints; /* (batch, blocks, chunks, parts, states, LANES) or NULL: no gradient */
    float *dA;          /* (batch, blocks, parts, states, LANES) */
    float *dB, *dC;     /* (groups, batch, parts of B and C, states, length) */
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
#define PI 3.14159265358979324

typedef struct {
    vf re, im;
} vc;

/* 2^x times cos and sin of pi y, to 2e-7 of 2^x. The angle comes as y = dt (high + low), a rate in
   two parts, whose products are exact enough for thousands of turns. The nearest whole number of
   half turns goes into the sign, the rest into polynomials. Beyond 2^22 the rest is not known any
   more, and its bound keeps the result finite. */
INLINE vc exp2_turned(vf x, vf dt, vf high, vf low) {
    const vf magic = splat(12582912.0f);
    vf size = exp2_lanes(x);
    vf shifted = dt * high + magic;
    vf r = (dt * high - (shifted - magic)) + dt * low;
    r = at_most(at_least(r, splat(-0.625f)), splat(0.625f));
    vf z = r * r;
    vf c = splat(0.21990276873111725f);
    c = c * z - 1.3320187330245972f;
    c = c * z + 4.058442115783691f;
    c = c * z - 4.934795379638672f;
    c = c * z + 1.0f;
    vf s = splat(0.07716253399848938f);
    s = s * z - 0.5980162024497986f;
    s = s * z + 2.5500266551971436f;
    s = s * z - 5.167706489562988f;
    s = s * z + 3.141592502593994f;
    size = (vf)((vi)size ^ ((vi)shifted << 31));
    return (vc){size * c, size * r * s};
}

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

/* A (channels, states) -> (states, LANES), times log2(e): one multiplication less per step. For the
   imaginary part two more such blocks follow, in half turns: high and low part of each rate. */
INLINE void load_rates(const int kind, vf *rates, const Scan *s, int64_t first, int lanes) {
    for (int64_t n = 0; n < s->states; n++) {
        float row[LANES] = {0}, high[LANES] = {0}, low[LANES] = {0};
        for (int i = 0; i < lanes; i++) {
            const float *a = s->A + PARTS(kind) * ((first + i) * s->states + n);
            row[i] = a[0] * LOG2E;
            if (kind == REAL) continue;
            high[i] = (float)(a[1] / PI);
            low[i] = (float)(a[1] / PI - high[i]);
        }
        rates[n] = *(const vfu *)row;
        if (kind == REAL) continue;
        rates[s->states + n] = *(const vfu *)high;
        rates[2 * s->states + n] = *(const vfu *)low;
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

INLINE void advance_real(const int nest, vf *state, const vf *rates, const vf *dt, const vf *dtu,
                         vf *y, const float *b, int64_t b_n, int64_t b_l, const float *c,
                         int64_t c_n, int64_t c_l, int tokens) {
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

/* The same for complex states; `apart` lies between their real and imaginary parts. */
INLINE void advance_complex(const int kind, const int nest, int64_t apart, vf *state,
                            const vf *rates, const vf *dt, const vf *dtu, vf *y, const float *b,
                            int64_t b_n, int64_t b_l, const float *c, int64_t c_n, int64_t c_l,
                            int tokens) {
    vf re[NEST], im[NEST], rate[NEST], high[NEST], low[NEST];
    for (int i = 0; i < nest; i++) {
        re[i] = state[i], im[i] = state[apart + i];
        rate[i] = rates[i], high[i] = rates[apart + i], low[i] = rates[2 * apart + i];
    }
    for (int t = 0; t < tokens; t++) {
        vf sum = y[t];
        for (int i = 0; i < nest; i++) {
            const float *b_t = b + i * b_n + t * b_l, *c_t = c + i * c_n + t * c_l;
            vc a = exp2_turned(dt[t] * rate[i], dt[t], high[i], low[i]);
            vf old = re[i];
            re[i] = a.re * old - a.im * im[i] + dtu[t] * b_t[0];
            im[i] = a.re * im[i] + a.im * old;
            if (kind == ALL) im[i] += dtu[t] * b_t[1];
            sum += re[i] * c_t[0];
            if (kind == ALL) sum -= im[i] * c_t[1];
        }
        y[t] = sum;
    }
    for (int i = 0; i < nest; i++) state[i] = re[i], state[apart + i] = im[i];
}

INLINE void advance(const int kind, const int nest, int64_t states, vf *state, const vf *rates,
                    const vf *dt, const vf *dtu, vf *y, const float *b, const Source *B,
                    const float *c, const Source *C, int tokens) {
    if (kind == REAL)
        advance_real(nest, state, rates, dt, dtu, y, b, B->d, B->l, c, C->d, C->l, tokens);
    else
        advance_complex(kind, nest, states, state, rates, dt, dtu, y, b, B->d, B->l, c, C->d, C->l,
                        tokens);
}

INLINE void forward_block(const int kind, const Scan *s, int64_t sequence, int64_t block,
                          vf *scratch) {
    const int64_t first = block * LANES, chunks = (s->length + CHUNK - 1) / CHUNK;
    const int64_t blocks = (s->channels + LANES - 1) / LANES, states = s->states;
    const int lanes = s->channels - first < LANES ? (int)(s->channels - first) : LANES;
    const vf bias = s->bias ? load_lanes(s->bias + first, lanes) : splat(0.0f);
    const vf skip = s->D ? load_lanes(s->D + first, lanes) : splat(0.0f);
    const float *u_from = s->u.data + sequence * s->u.b + first * s->u.d;
    const float *delta_from = s->delta.data + sequence * s->delta.b + first * s->delta.d;
    float *y_to = s->y.data + sequence * s->y.b + first * s->y.d;
    const int64_t parts = PARTS(kind) * states;
    vf *state = scratch, *rates = scratch + parts;
    vf u[CHUNK], dt[CHUNK], dtu[CHUNK], y[CHUNK], slope[CHUNK];

    load_rates(kind, rates, s, first, lanes);
    memset(state, 0, parts * sizeof(vf));
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
        const int64_t start = chunk * CHUNK;
        const int tokens = s->length - start < CHUNK ? (int)(s->length - start) : CHUNK;
        if (s->checkpoints)
            memcpy(s->checkpoints + ((sequence * blocks + block) * chunks + chunk) * parts * LANES,
                   state, parts * sizeof(vf));
        load_tile(u, u_from + start * s->u.l, s->u.d, s->u.l, lanes, tokens);
        load_tile(dt, delta_from + start * s->delta.l, s->delta.d, s->delta.l, lanes, tokens);
        time_steps(s, bias, dt, slope, tokens);
        /* The factor two of a complex output enters here: the states below are doubled ones. */
        for (int t = 0; t < tokens; t++) {
            dtu[t] = dt[t] * u[t], y[t] = skip * u[t];
            if (kind != REAL) dtu[t] *= 2.0f;
        }
        const float *b = s->B.data + sequence * s->B.b + start * s->B.l;
        const float *c = s->C.data + sequence * s->C.b + start * s->C.l;
        int64_t n = 0;
        for (; n + NEST_OF(kind) <= states; n += NEST_OF(kind))
            advance(kind, NEST_OF(kind), states, state + n, rates + n, dt, dtu, y,
                        b + n * s->B.d, &s->B, c + n * s->C.d, &s->C, tokens);
        for (; n < states; n++)
            advance(kind, 1, states, state + n, rates + n, dt, dtu, y,
                        b + n * s->B.d, &s->B, c + n * s->C.d, &s->C, tokens);
        store_tile(y_to + start * s->y.l, s->y.d, s->y.l, y, lanes, tokens);
    }
}

/* ---- backward ---- */

typedef struct {
    vf u[CHUNK], dt[CHUNK], slope[CHUNK], dtu[CHUNK], dy[CHUNK];
    vf ddtu[CHUNK], ddt[CHUNK]; /* gradient to dtu, and to dt by way of the decay, times log2(e) */
    vf kept[2 * CHUNK * NEST]; /* state before a token and decay, each in its parts */
} Tiles;

INLINE void retreat_real(const int nest, const vf *checkpoint, const vf *rates, vf *adjoint, vf *dA,
                         Tiles *w, vf *dB, vf *dC, const float *b, int64_t b_n, int64_t b_l,
                         const float *c, int64_t c_n, int64_t c_l, int tokens) {
    vf h[NEST], g[NEST], rate[NEST], da[NEST];
    for (int i = 0; i < nest; i++) h[i] = checkpoint[i], rate[i] = rates[i];
    for (int t = 0; t < tokens; t++)
        for (int i = 0; i < nest; i++) {
            vf a = exp2_lanes(w->dt[t] * rate[i]);
            w->kept[2 * (t * nest + i)] = h[i];
            w->kept[2 * (t * nest + i) + 1] = a;
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
            g[i] *= w->kept[2 * (t * nest + i) + 1];
            vf exponent = g[i] * w->kept[2 * (t * nest + i)];
            da[i] += exponent * w->dt[t];
            ddt += exponent * rate[i];
        }
        w->ddtu[t] = ddtu, w->ddt[t] = ddt;
    }
    for (int i = 0; i < nest; i++) adjoint[i] = g[i], dA[i] = da[i];
}

/* Products with a conjugate take a gradient back through a product. Gradients are those of the real
   and imaginary part, as PyTorch has them. */
INLINE vc times_conjugate(vc a, vc b) {
    return (vc){a.re * b.re + a.im * b.im, a.im * b.re - a.re * b.im};
}

/* The same for complex states; `apart` lies between their real and imaginary parts. */
INLINE void retreat_complex(const int kind, const int nest, int64_t apart, const vf *checkpoint,
                            const vf *rates, vf *adjoint, vf *dA, Tiles *w, vf *dB, vf *dC,
                            const float *b, int64_t b_n, int64_t b_l, const float *c, int64_t c_n,
                            int64_t c_l, int tokens) {
    const int64_t imaginary = apart * CHUNK;
    vf rate[NEST], high[NEST], low[NEST];
    vc h[NEST], g[NEST], da[NEST];
    for (int i = 0; i < nest; i++) {
        h[i] = (vc){checkpoint[i], checkpoint[apart + i]};
        rate[i] = rates[i], high[i] = rates[apart + i], low[i] = rates[2 * apart + i];
    }
    for (int t = 0; t < tokens; t++)
        for (int i = 0; i < nest; i++) {
            const float *b_t = b + i * b_n + t * b_l;
            vc a = exp2_turned(w->dt[t] * rate[i], w->dt[t], high[i], low[i]), old = h[i];
            vf *kept = w->kept + 4 * (t * nest + i);
            kept[0] = old.re, kept[1] = old.im, kept[2] = a.re, kept[3] = a.im;
            h[i].re = a.re * old.re - a.im * old.im + w->dtu[t] * b_t[0];
            h[i].im = a.re * old.im + a.im * old.re;
            dC[i * CHUNK + t] += w->dy[t] * h[i].re;
            if (kind == ALL) {
                h[i].im += w->dtu[t] * b_t[1];
                dC[imaginary + i * CHUNK + t] -= w->dy[t] * h[i].im;
            }
        }
    for (int i = 0; i < nest; i++) {
        g[i] = (vc){adjoint[i], adjoint[apart + i]};
        da[i] = (vc){dA[i], dA[apart + i]};
        high[i] *= (float)PI / LN2; /* in the unit of `rate`: radians times log2(e) */
    }
    for (int t = tokens - 1; t >= 0; t--) {
        vf ddtu = w->ddtu[t], ddt = w->ddt[t];
        for (int i = 0; i < nest; i++) {
            const float *b_t = b + i * b_n + t * b_l, *c_t = c + i * c_n + t * c_l;
            const vf *kept = w->kept + 4 * (t * nest + i);
            g[i].re += w->dy[t] * c_t[0];
            dB[i * CHUNK + t] += g[i].re * w->dtu[t];
            ddtu += g[i].re * b_t[0];
            if (kind == ALL) {
                g[i].im -= w->dy[t] * c_t[1];
                dB[imaginary + i * CHUNK + t] += g[i].im * w->dtu[t];
                ddtu += g[i].im * b_t[1];
            }
            g[i] = times_conjugate(g[i], (vc){kept[2], kept[3]});
            vc exponent = times_conjugate(g[i], (vc){kept[0], kept[1]});
            da[i].re += exponent.re * w->dt[t];
            da[i].im += exponent.im * w->dt[t];
            ddt += exponent.re * rate[i] + exponent.im * high[i];
        }
        w->ddtu[t] = ddtu, w->ddt[t] = ddt;
    }
    for (int i = 0; i < nest; i++) {
        adjoint[i] = g[i].re, adjoint[apart + i] = g[i].im;
        dA[i] = da[i].re, dA[apart + i] = da[i].im;
    }
}

INLINE void retreat(const int kind, const int nest, int64_t states, const vf *checkpoint,
                    const vf *rates, vf *adjoint, vf *dA, Tiles *w, vf *dB, vf *dC, const float *b,
                    const Source *B, const float *c, const Source *C, int tokens) {
    if (kind == REAL)
        retreat_real(nest, checkpoint, rates, adjoint, dA, w, dB, dC, b, B->d, B->l, c, C->d, C->l,
                     tokens);
    else
        retreat_complex(kind, nest, states, checkpoint, rates, adjoint, dA, w, dB, dC, b, B->d,
                        B->l, c, C->d, C->l, tokens);
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

INLINE void backward_group(const int kind, const Scan *s, int64_t sequence, int64_t group,
                           vf *scratch) {
    const int64_t chunks = (s->length + CHUNK - 1) / CHUNK, states = s->states;
    const int64_t blocks = (s->channels + LANES - 1) / LANES;
    const int64_t first_block = blocks * group / s->groups;
    const int64_t own = blocks * (group + 1) / s->groups - first_block;
    const int64_t parts = PARTS(kind) * states, bc_parts = BC_PARTS(kind) * states;
    vf *rates = scratch, *adjoint = rates + own * RATES(kind) * states;
    vf *dA = adjoint + own * parts, *dD = dA + own * parts, *dbias = dD + own;
    vf *dB = dbias + own, *dC = dB + bc_parts * CHUNK;
    Tiles w;

    memset(adjoint, 0, (2 * parts + 2) * own * sizeof(vf));
    for (int64_t k = 0; k < own; k++) {
        const int64_t first = (first_block + k) * LANES;
        const int lanes = s->channels - first < LANES ? (int)(s->channels - first) : LANES;
        load_rates(kind, rates + k * RATES(kind) * states, s, first, lanes);
    }
    for (int64_t chunk = chunks - 1; chunk >= 0; chunk--) {
        const int64_t start = chunk * CHUNK;
        const int tokens = s->length - start < CHUNK ? (int)(s->length - start) : CHUNK;
        const float *b = s->B.data + sequence * s->B.b + start * s->B.l;
        const float *c = s->C.data + sequence * s->C.b + start * s->C.l;
        memset(dB, 0, 2 * bc_parts * CHUNK * sizeof(vf));
        for (int64_t k = 0; k < own; k++) {
            const int64_t block = first_block + k, first = block * LANES;
            const int lanes = s->channels - first < LANES ? (int)(s->channels - first) : LANES;
            const vf bias = s->bias ? load_lanes(s->bias + first, lanes) : splat(0.0f);
            const vf skip = s->D ? load_lanes(s->D + first, lanes) : splat(0.0f);
            const vf *checkpoint = (const vf *)(s->checkpoints) +
                                   ((sequence * blocks + block) * chunks + chunk) * parts;
            const vf *own_rates = rates + k * RATES(kind) * states;
            vf *g = adjoint + k * parts, *da = dA + k * parts;
            load_tile(w.u, s->u.data + sequence * s->u.b + first * s->u.d + start * s->u.l,
                      s->u.d, s->u.l, lanes, tokens);
            load_tile(w.dt, s->delta.data + sequence * s->delta.b + first * s->delta.d +
                      start * s->delta.l, s->delta.d, s->delta.l, lanes, tokens);
            load_tile(w.dy, s->dy.data + sequence * s->dy.b + first * s->dy.d + start * s->dy.l,
                      s->dy.d, s->dy.l, lanes, tokens);
            time_steps(s, bias, w.dt, w.slope, tokens);
            for (int t = 0; t < tokens; t++) {
                w.dtu[t] = w.dt[t] * w.u[t];
                if (kind != REAL) w.dtu[t] *= 2.0f;
                w.ddtu[t] = w.ddt[t] = splat(0.0f);
            }
            int64_t n = 0;
            for (; n + NEST_OF(kind) <= states; n += NEST_OF(kind))
                retreat(kind, NEST_OF(kind), states, checkpoint + n, own_rates + n, g + n, da + n,
                        &w, dB + n * CHUNK, dC + n * CHUNK, b + n * s->B.d, &s->B,
                        c + n * s->C.d, &s->C, tokens);
            for (; n < states; n++)
                retreat(kind, 1, states, checkpoint + n, own_rates + n, g + n, da + n, &w,
                        dB + n * CHUNK, dC + n * CHUNK, b + n * s->B.d, &s->B, c + n * s->C.d,
                        &s->C, tokens);
            for (int t = 0; t < tokens; t++) {
                dD[k] += w.dy[t] * w.u[t];
                if (kind != REAL) w.ddtu[t] *= 2.0f;
                w.ddt[t] = (w.ddt[t] * LN2 + w.ddtu[t] * w.u[t]) * w.slope[t];
                dbias[k] += w.ddt[t];
                w.ddtu[t] = w.ddtu[t] * w.dt[t] + skip * w.dy[t];
            }
            store_tile(s->du.data + sequence * s->du.b + first * s->du.d + start * s->du.l,
                       s->du.d, s->du.l, w.ddtu, lanes, tokens);
            store_tile(s->ddelta.data + sequence * s->ddelta.b + first * s->ddelta.d +
                       start * s->ddelta.l, s->ddelta.d, s->ddelta.l, w.ddt, lanes, tokens);
        }
        const int64_t row = (group * s->batch + sequence) * bc_parts * s->length;
        reduce_lanes(s->dB + row, s->length, dB, bc_parts, start, tokens);
        reduce_lanes(s->dC + row, s->length, dC, bc_parts, start, tokens);
    }
    const int64_t at = sequence * blocks + first_block;
    memcpy(s->dA + at * parts * LANES, dA, own * parts * sizeof(vf));
    memcpy(s->dD + at * LANES, dD, own * sizeof(vf));
    memcpy(s->dbias + at * LANES, dbias, own * sizeof(vf));
}

/* ---- one program for each kind ---- */

static void forward_any(const Scan *s, int64_t sequence, int64_t block, vf *scratch) {
    switch (s->kind) {
    case REAL: forward_block(REAL, s, sequence, block, scratch); break;
    case POLES: forward_block(POLES, s, sequence, block, scratch); break;
    default: forward_block(ALL, s, sequence, block, scratch);
    }
}

static void backward_any(const Scan *s, int64_t sequence, int64_t group, vf *scratch) {
    switch (s->kind) {
    case REAL: backward_group(REAL, s, sequence, group, scratch); break;
    case POLES: backward_group(POLES, s, sequence, group, scratch); break;
    default: backward_group(ALL, s, sequence, group, scratch);
    }
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
        vf *scratch = new_scratch((PARTS(s->kind) + RATES(s->kind)) * s->states);
#pragma omp for schedule(dynamic, 4)
        for (int64_t task = 0; task < s->batch * blocks; task++) {
            if (scratch) {
                forward_any(s, task / blocks, task % blocks, scratch);
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
        const int64_t own = (2 * PARTS(s->kind) + RATES(s->kind)) * s->states + 2;
        vf *scratch = new_scratch(most * own + 2 * BC_PARTS(s->kind) * s->states * CHUNK);
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < s->batch * s->groups; task++) {
            if (scratch) {
                backward_any(s, task / s->groups, task % s->groups, scratch);
            } else {
#pragma omp atomic write
                failed = 1;
            }
        }
        free(scratch);
    }
    return failed;
}
