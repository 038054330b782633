/* Rate of fused multiply-adds in float32 by registers alone: the limit of any engine on this CPU.
 *
 * fma THREADS SECONDS prints the floating-point operations of all threads and the seconds of the slowest: "OPERATIONS SECONDS".
 * Each thread runs independent chains, enough to fill the pipes of every core that we know of: latency times units is at most
 * 5 x 2 vectors. Values converge to a normal number, so that neither infinities nor denormals slow them. Their start and the
 * factors are known only at run time, and the sum is printed, so that no compiler can leave the work out.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#if defined(__AVX512F__)
#include <immintrin.h>
typedef __m512 vector;
#define FILL _mm512_set1_ps
#define FMA _mm512_fmadd_ps
#elif defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>
typedef __m256 vector;
#define FILL _mm256_set1_ps
#define FMA _mm256_fmadd_ps
#elif defined(__aarch64__)
#include <arm_neon.h>
typedef float32x4_t vector;
#define FILL vdupq_n_f32
#define FMA(a, b, c) vfmaq_f32(c, a, b)
#else
#error "no fused multiply-add that this program knows"
#endif

#define CHAINS 12 /* with the factor and the summand, 14 of AVX2's 16 registers */
#define ROUNDS 20000
#define LANES (sizeof(vector) / sizeof(float))

static pthread_barrier_t start;
static double wanted;
static volatile float factor = 0.999f, summand = 0.001f;

struct share {
    pthread_t thread;
    double operations, seconds;
    float sum;
};

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + 1e-9 * time.tv_nsec;
}

static void *work(void *argument) {
    struct share *share = argument;
    vector chain[CHAINS], a = FILL(factor), b = FILL(summand);
    for (int i = 0; i < CHAINS; i++) chain[i] = FILL(factor * (i + 1));
    pthread_barrier_wait(&start);
    double began = now();
    do {
        for (long round = 0; round < ROUNDS; round++) {
#pragma GCC unroll 12
            for (int i = 0; i < CHAINS; i++) chain[i] = FMA(chain[i], a, b);
        }
        share->operations += 2.0 * LANES * CHAINS * ROUNDS;
        share->seconds = now() - began;
    } while (share->seconds < wanted);
    for (int i = 0; i < CHAINS; i++) share->sum += ((float *)&chain[i])[i % LANES];
    return NULL;
}

int main(int count, char **arguments) {
    int threads = count == 3 ? atoi(arguments[1]) : 0;
    wanted = count == 3 ? atof(arguments[2]) : 0;
    if (threads < 1 || threads > 4096 || wanted <= 0) return fprintf(stderr, "usage: fma THREADS SECONDS\n"), 2;
    struct share *shares = calloc(threads, sizeof *shares);
    pthread_barrier_init(&start, NULL, threads);
    for (int i = 0; i < threads; i++)
        if (pthread_create(&shares[i].thread, NULL, work, &shares[i])) return perror("fma"), 1;
    double operations = 0, seconds = 0;
    float sum = 0;
    for (int i = 0; i < threads; i++) {
        pthread_join(shares[i].thread, NULL);
        operations += shares[i].operations;
        sum += shares[i].sum;
        if (shares[i].seconds > seconds) seconds = shares[i].seconds;
    }
    printf("%.0f %.9f\n", operations, seconds);
    fprintf(stderr, "sum %g\n", sum);
    return 0;
}
