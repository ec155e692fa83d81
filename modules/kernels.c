/* Kernels for which PyTorch has no single operation. modules/kernels.py compiles and calls them.

   Random numbers come from Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as
   1, 2, 3"). They are a function of key and counter: the result is the same for any number of threads. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* One library for all processors of an architecture: the loader selects the version with the widest
   instructions. It does so before AddressSanitizer is initialized, hence the exception. */
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__)
#define WIDEST __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define WIDEST
#endif
#define INLINE static inline __attribute__((always_inline))

#define LANES 32 /* counters per call of philox: fewer would not hide the latency of products */
#define BLOCK 256 /* values per call of philox, with 16 random bits each */
#define WORD 64 /* mask bits per word */
#define PARALLEL 16384 /* smallest number of values that uses several threads */

/* Independent random streams for each counter. */
enum { MASKS, TIES, GAPS };

/* Compute the four words of each of LANES successive counters. */
INLINE void philox(uint64_t key, uint64_t counter, uint32_t use, uint32_t out[4][LANES]) {
    /* 32-bit words, stored with 64 bits for their products. */
    uint64_t c0[LANES], c1[LANES], c2[LANES], c3[LANES];
    for (int i = 0; i < LANES; i++) {
        c0[i] = (uint32_t)(counter + i);
        c1[i] = (counter + i) >> 32;
        c2[i] = use;
        c3[i] = 0;
    }
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    for (int round = 0; round < 10; round++) {
#pragma omp simd
        for (int i = 0; i < LANES; i++) {
            uint64_t a = c0[i] * 0xD2511F53u, b = c2[i] * 0xCD9E8D57u;
            c0[i] = b >> 32 ^ c1[i] ^ k0;
            c1[i] = (uint32_t)b;
            c2[i] = a >> 32 ^ c3[i] ^ k1;
            c3[i] = (uint32_t)a;
        }
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    for (int i = 0; i < LANES; i++) {
        out[0][i] = (uint32_t)c0[i];
        out[1][i] = (uint32_t)c1[i];
        out[2][i] = (uint32_t)c2[i];
        out[3][i] = (uint32_t)c3[i];
    }
}

/* Set keep to 1 where a value is kept. 16 random bits are compared with the first 16 bits of the rate;
   in a tie, 32 more bits decide. The rate is exact to 48 bits at the cost of 16. */
INLINE void draw(uint64_t key, uint64_t block, uint32_t high, uint32_t low, uint8_t keep[BLOCK]) {
    uint16_t random[BLOCK];
    philox(key, block * LANES, MASKS, (uint32_t(*)[LANES])random);
    int ties = 0;
    for (int i = 0; i < BLOCK; i++) {
        keep[i] = random[i] >= high;
        ties |= random[i] == high;
    }
    if (!ties) return;
    for (int i = 0; i < BLOCK; i++) {
        if (random[i] != high) continue;
        uint32_t further[4][LANES];
        philox(key, block * BLOCK + i, TIES, further);
        keep[i] = further[0][0] >= low;
    }
}

/* Pack each eight bytes of 0 or 1 into eight bits. */
INLINE uint64_t pack(const uint8_t keep[WORD]) {
    uint64_t word = 0;
    for (int i = 0; i < WORD; i += 8) {
        uint64_t bytes;
        memcpy(&bytes, keep + i, 8);
        word |= ((bytes * 0x0102040810204080u) >> 56) << i;
    }
    return word;
}

/* Set a byte to a nonzero value where the bit of the word is set. */
INLINE void unpack(uint64_t word, uint8_t keep[WORD]) {
    for (int i = 0; i < WORD; i += 8) {
        uint64_t bytes = (word >> i & 0xFF) * 0x0101010101010101u & 0x8040201008040201u;
        memcpy(keep + i, &bytes, 8);
    }
}

INLINE float from_bfloat16(uint16_t x) {
    uint32_t bits = (uint32_t)x << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* Round to nearest, ties to even; NaN stays NaN. */
INLINE uint16_t to_bfloat16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    uint16_t rounded = (uint16_t)((bits + 0x7FFFu + ((bits >> 16) & 1)) >> 16);
    return (bits & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FC0u : rounded;
}

#define SAME(x) (x)

/* Write `count` values: s * x + t where `keep`, else `zero`. It selects by bit operations, because some
   compilers do not vectorize a selection between floats. */
#define CHOOSE(STORED, BITS, LOAD, STORE, count)                                                          \
    for (int i = 0; i < (count); i++) {                                                                    \
        union { STORED value; BITS bits; } kept = {STORE(s * LOAD(from[i]) + t)}, other = {zero};          \
        BITS mask = -(BITS)(keep[i] != 0);                                                                 \
        kept.bits = (kept.bits & mask) | (other.bits & ~mask);                                             \
        to[i] = kept.value;                                                                                \
    }

/* dropout_: y = scale * x + shift where x is kept, else `dropped`; the mask is written to `bits`.
   apply_: y = scale * x where the given bit is set, else 0; the bits of each row start a new word. */
#define KERNELS(NAME, STORED, BITS, T, LOAD, STORE)                                                       \
    WIDEST void dropout_##NAME(const STORED *x, STORED *y, uint64_t *bits, int64_t count, uint64_t key,    \
                               uint32_t high, uint32_t low, double scale, double shift, double dropped,    \
                               int threads) {                                                              \
        const T s = (T)scale, t = (T)shift;                                                                \
        const STORED zero = STORE((T)dropped);                                                             \
        int64_t blocks = (count + BLOCK - 1) / BLOCK;                                                      \
        _Pragma("omp parallel for num_threads(threads) if (count >= PARALLEL)")                            \
        for (int64_t b = 0; b < blocks; b++) {                                                             \
            uint8_t keep[BLOCK];                                                                           \
            draw(key, (uint64_t)b, high, low, keep);                                                       \
            const STORED *from = x + b * BLOCK;                                                            \
            STORED *to = y + b * BLOCK;                                                                    \
            int64_t rest = count - b * BLOCK;                                                              \
            if (rest >= BLOCK)                                                                             \
                CHOOSE(STORED, BITS, LOAD, STORE, BLOCK)                                                   \
            else                                                                                           \
                CHOOSE(STORED, BITS, LOAD, STORE, rest)                                                    \
            for (int w = 0; w < BLOCK / WORD && w * WORD < rest; w++)                                      \
                bits[BLOCK / WORD * b + w] = pack(keep + w * WORD);                                        \
        }                                                                                                  \
    }                                                                                                      \
                                                                                                           \
    WIDEST void apply_##NAME(const STORED *x, STORED *y, const uint64_t *bits, int64_t rows,               \
                             int64_t columns, double scale, int threads) {                                 \
        const T s = (T)scale, t = 0;                                                                       \
        const STORED zero = STORE(t);                                                                      \
        int64_t words = (columns + WORD - 1) / WORD;                                                       \
        _Pragma("omp parallel for num_threads(threads) if (rows * columns >= PARALLEL)")                   \
        for (int64_t w = 0; w < rows * words; w++) {                                                       \
            int64_t column = w % words * WORD, at = w / words * columns + column, rest = columns - column; \
            uint8_t keep[WORD];                                                                            \
            unpack(bits[w], keep);                                                                         \
            const STORED *from = x + at;                                                                   \
            STORED *to = y + at;                                                                           \
            if (rest >= WORD)                                                                              \
                CHOOSE(STORED, BITS, LOAD, STORE, WORD)                                                    \
            else                                                                                           \
                CHOOSE(STORED, BITS, LOAD, STORE, rest)                                                    \
        }                                                                                                  \
    }

KERNELS(float32, float, uint32_t, float, SAME, SAME)
KERNELS(float64, double, uint64_t, double, SAME, SAME)
KERNELS(bfloat16, uint16_t, uint16_t, float, from_bfloat16, to_bfloat16)

/* Return a uniform number in (0, 1] with 53 random bits. */
INLINE double uniform(uint32_t high, uint32_t low) {
    return ((((uint64_t)high << 32 | low) >> 11) + 1) * 0x1p-53;
}

/* Write the mask of each row as bits, zero where a block covers the position. A block starts at each
   position with a probability p, log(1 - p) = `log_stay`; also before the first position, if it reaches
   the map. The gaps between starts are geometric, so only starts are drawn (Devroye 1986, X.2).
   Returns 0 if out of memory, else 1. */
WIDEST int blocks(uint64_t *bits, int64_t rows, const int64_t sizes[3], const int64_t sides[3],
                  double log_stay, uint64_t key, int threads) {
    int failed = 0;
    const int64_t a = sizes[0], b = sizes[1], c = sizes[2];
    const int64_t wide_c = c + sides[2] - 1, wide_b = b + sides[1] - 1;
    const int64_t starts = (a + sides[0] - 1) * wide_b * wide_c;
    const int64_t columns = a * b * c, words = (columns + WORD - 1) / WORD;
#pragma omp parallel num_threads(threads) if (rows * columns >= PARALLEL) reduction(| : failed)
    {
        uint8_t *keep = malloc(words * WORD);
        failed = !keep;
#pragma omp for
        for (int64_t row = 0; row < rows; row++) {
            if (failed) continue;
            memset(keep, 1, words * WORD);
            int64_t at = -1;
            for (uint64_t n = 0; at < starts; n++) {
                uint32_t random[4][LANES];
                philox(key, ((uint64_t)row << 24) + n * LANES, GAPS, random);
                for (int i = 0; i < 2 * LANES; i++) {
                    int half = 2 * (i / LANES), lane = i % LANES;
                    double gap = log(uniform(random[half][lane], random[half + 1][lane])) / log_stay;
                    at = gap < starts ? at + 1 + (int64_t)gap : starts;
                    if (at >= starts) {
                        at = starts;
                        break;
                    }
                    /* The start of the block, relative to the first position of the map. */
                    int64_t z = at % wide_c - sides[2] + 1, y = at / wide_c % wide_b - sides[1] + 1;
                    int64_t x = at / wide_c / wide_b - sides[0] + 1;
                    int64_t first = z < 0 ? 0 : z, last = z + sides[2] < c ? z + sides[2] : c;
                    for (int64_t u = x < 0 ? 0 : x; u < x + sides[0] && u < a; u++)
                        for (int64_t v = y < 0 ? 0 : y; v < y + sides[1] && v < b; v++)
                            memset(keep + (u * b + v) * c + first, 0, last - first);
                }
            }
            for (int64_t w = 0; w < words; w++) bits[row * words + w] = pack(keep + w * WORD);
        }
        free(keep);
    }
    return !failed;
}

/* Range of the valid steps of a sequence: all steps before `lead`, steps of the mask from `lead` to
   `end`, no step from `end`. */
typedef struct {
    int64_t lead, end;
} Span;

INLINE Span *spans(const uint8_t *mask, int64_t batch, int64_t steps) {
    Span *found = malloc(batch * sizeof(Span));
    if (!found) return found;
    for (int64_t b = 0; b < batch; b++) {
        const uint8_t *valid = mask + b * steps;
        Span span = {0, steps};
        while (span.lead < steps && valid[span.lead]) span.lead++;
        while (span.end > span.lead && !valid[span.end - 1]) span.end--;
        found[b] = span;
    }
    return found;
}

INLINE int64_t count_valid(const uint8_t *mask, const Span *found, int64_t batch, int64_t steps) {
    int64_t count = 0;
    for (int64_t b = 0; b < batch; b++) {
        count += found[b].lead;
        for (int64_t t = found[b].lead; t < found[b].end; t++) count += mask[b * steps + t] != 0;
    }
    return count;
}

/* Execute `DO` for each valid step t. */
#define VALID(DO)                                                                                         \
    for (int64_t t = 0; t < span.lead; t++) { DO; }                                                        \
    for (int64_t t = span.lead; t < span.end; t++)                                                         \
        if (valid[t]) { DO; }

/* Channels per iteration of a thread: adjacent in memory. */
#define TOGETHER 8
/* Values per partial sum in the input type; partial sums are added in double precision. */
#define RUN 128

/* Execute the arguments for each line of the channels from `first` to `last` of each sequence. */
#define LINES(...)                                                                                        \
    for (int64_t b = 0; b < batch; b++) {                                                                  \
        const Span span = found[b];                                                                        \
        const uint8_t *valid = mask + b * steps;                                                           \
        for (int64_t c = first; c < last; c++)                                                             \
            for (int64_t l = 0; l < lines; l++) {                                                          \
                const int64_t at = ((b * channels + c) * lines + l) * steps, k = c - first;                \
                __VA_ARGS__                                                                                \
            }                                                                                              \
    }

/* Batch norm of x (batch, channels, lines, steps) over the valid steps of mask (batch, steps).
   RUN values are summed in type T, their sums in double. norm_forward_ writes y, mean and biased
   variance, and returns the number of valid values per channel; if it is less than two nothing is
   written. It returns -1 if out of memory. norm_backward_ takes this number as `count` and writes the
   gradients of x, weight and bias, the latter two also if the norm has none. It returns 0 if out of
   memory, else 1. */
#define NORMS(NAME, T)                                                                                    \
    INLINE double sum_##NAME(const T *x, const uint8_t *valid, Span span) {                               \
        double sum = 0;                                                                                   \
        for (int64_t start = 0; start < span.lead; start += RUN) {                                        \
            const int64_t stop = start + RUN < span.lead ? start + RUN : span.lead;                       \
            T part = 0;                                                                                   \
            _Pragma("omp simd reduction(+ : part)")                                                       \
            for (int64_t t = start; t < stop; t++) part += x[t];                                          \
            sum += part;                                                                                  \
        }                                                                                                 \
        for (int64_t t = span.lead; t < span.end; t++) sum += valid[t] ? x[t] : 0;                        \
        return sum;                                                                                       \
    }                                                                                                     \
                                                                                                          \
    /* Sum of (x - middle) * (y - other). */                                                              \
    INLINE double product_##NAME(const T *x, T middle, const T *y, T other, const uint8_t *valid,         \
                                 Span span) {                                                             \
        double sum = 0;                                                                                   \
        for (int64_t start = 0; start < span.lead; start += RUN) {                                        \
            const int64_t stop = start + RUN < span.lead ? start + RUN : span.lead;                       \
            T part = 0;                                                                                   \
            _Pragma("omp simd reduction(+ : part)")                                                       \
            for (int64_t t = start; t < stop; t++) part += (x[t] - middle) * (y[t] - other);              \
            sum += part;                                                                                  \
        }                                                                                                 \
        for (int64_t t = span.lead; t < span.end; t++)                                                    \
            sum += valid[t] ? (x[t] - middle) * (y[t] - other) : 0;                                       \
        return sum;                                                                                       \
    }                                                                                                     \
                                                                                                          \
    WIDEST int64_t norm_forward_##NAME(const T *x, const uint8_t *mask, const T *weight, const T *bias,   \
                                       T *y, T *mean, T *variance, int64_t batch, int64_t channels,       \
                                       int64_t lines, int64_t steps, double eps, int threads) {           \
        Span *found = spans(mask, batch, steps);                                                          \
        if (!found) return -1;                                                                            \
        const int64_t count = count_valid(mask, found, batch, steps) * lines;                             \
        if (count < 2) {                                                                                  \
            free(found);                                                                                  \
            return count;                                                                                 \
        }                                                                                                 \
        _Pragma("omp parallel for num_threads(threads) if (batch * channels * lines * steps >= PARALLEL)")\
        for (int64_t first = 0; first < channels; first += TOGETHER) {                                    \
            const int64_t last = first + TOGETHER < channels ? first + TOGETHER : channels;               \
            double sum[TOGETHER] = {0}, squares[TOGETHER] = {0};                                          \
            T factor[TOGETHER], shift[TOGETHER];                                                          \
            LINES(sum[k] += sum_##NAME(x + at, valid, span);)                                             \
            for (int64_t c = first; c < last; c++) mean[c] = (T)(sum[c - first] / count);                 \
            LINES(squares[k] += product_##NAME(x + at, mean[c], x + at, mean[c], valid, span);)           \
            for (int64_t c = first; c < last; c++) {                                                      \
                const double spread = squares[c - first] / count;                                         \
                variance[c] = (T)spread;                                                                  \
                factor[c - first] = (T)((weight ? weight[c] : 1) / sqrt(spread + eps));                   \
                /* Correct the rounding error of the mean. */                                             \
                shift[c - first] = bias ? bias[c] : 0;                                                    \
                shift[c - first] -= (T)(sum[c - first] / count - mean[c]) * factor[c - first];            \
            }                                                                                             \
            LINES(                                                                                        \
                const T middle = mean[c], times = factor[k], plus = shift[k];                             \
                memset(y + at + span.lead, 0, (steps - span.lead) * sizeof(T));                           \
                VALID(y[at + t] = (x[at + t] - middle) * times + plus))                                   \
        }                                                                                                 \
        free(found);                                                                                      \
        return count;                                                                                     \
    }                                                                                                     \
                                                                                                          \
    WIDEST int norm_backward_##NAME(const T *upstream, const T *x, const uint8_t *mask, const T *weight,  \
                                    const T *mean, const T *variance, T *x_grad, T *weight_grad,          \
                                    T *bias_grad, int64_t batch, int64_t channels, int64_t lines,         \
                                    int64_t steps, int64_t count, double eps, int threads) {              \
        Span *found = spans(mask, batch, steps);                                                          \
        if (!found) return 0;                                                                             \
        _Pragma("omp parallel for num_threads(threads) if (batch * channels * lines * steps >= PARALLEL)")\
        for (int64_t first = 0; first < channels; first += TOGETHER) {                                    \
            const int64_t last = first + TOGETHER < channels ? first + TOGETHER : channels;               \
            double sum[TOGETHER] = {0}, products[TOGETHER] = {0};                                         \
            T factor[TOGETHER], common[TOGETHER], slope[TOGETHER];                                        \
            LINES(                                                                                        \
                sum[k] += sum_##NAME(upstream + at, valid, span);                                         \
                products[k] += product_##NAME(upstream + at, 0, x + at, mean[c], valid, span);)           \
            for (int64_t c = first, k = 0; c < last; c++, k++) {                                          \
                const T scale = (T)(1 / sqrt(variance[c] + eps));                                         \
                bias_grad[c] = (T)sum[k];                                                                 \
                weight_grad[c] = (T)(products[k] * scale);                                                \
                factor[k] = (weight ? weight[c] : 1) * scale;                                             \
                common[k] = (T)(sum[k] / count);                                                          \
                slope[k] = (T)(products[k] / count * scale * scale);                                      \
            }                                                                                             \
            LINES(                                                                                        \
                const T middle = mean[c], times = factor[k], minus = common[k], bend = slope[k];          \
                memset(x_grad + at + span.lead, 0, (steps - span.lead) * sizeof(T));                      \
                VALID(x_grad[at + t] = (upstream[at + t] - minus - (x[at + t] - middle) * bend) * times)) \
        }                                                                                                 \
        free(found);                                                                                      \
        return 1;                                                                                         \
    }

NORMS(float32, float)
NORMS(float64, double)
