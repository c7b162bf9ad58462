/* Hides AVX-512, VNNI and AMX from a process, so that its libraries choose the kernels for processors that have only AVX2:

       mkdir -p build && cc -O2 -shared -fPIC tools/bench/avx2_only.c -o build/avx2_only.so
       LD_PRELOAD=$PWD/build/avx2_only.so python -m tools.bench run ddpm-36m

   Instructions run at full speed. Only CPUID is intercepted: Linux can make it fault on x86-64 processors with `cpuid_fault` in
   /proc/cpuinfo. See arch_prctl(2), and CPUID in volume 2A of Intel's manual. */

#define _GNU_SOURCE
#include <asm/prctl.h>
#include <cpuid.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define BIT(n) (1u << (n))

static const unsigned EBX_7_0 = BIT(16) | BIT(17) | BIT(21) | BIT(28) | BIT(30) | BIT(31); /* AVX512 F, DQ, IFMA, CD, BW, VL */
static const unsigned ECX_7_0 = BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14);             /* AVX512 VBMI, VBMI2, VNNI, BITALG, VPOPCNTDQ */
static const unsigned EDX_7_0 = BIT(8) | BIT(22) | BIT(23) | BIT(24) | BIT(25);            /* VP2INTERSECT, AMX BF16, AVX512 FP16, AMX TILE, INT8 */
static const unsigned EAX_7_1 = BIT(4) | BIT(5) | BIT(21) | BIT(23);                       /* AVX VNNI, AVX512 BF16, AMX FP16, AVX IFMA */
static const unsigned EDX_7_1 = BIT(4) | BIT(5) | BIT(8) | BIT(10);                        /* AVX VNNI INT8, NE CONVERT, AMX COMPLEX, VNNI INT16 */

static int let_cpuid(int on) { return (int)syscall(SYS_arch_prctl, ARCH_SET_CPUID, on); }

static void answer(int number, siginfo_t *info, void *context) {
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    const unsigned char *code = (const unsigned char *)registers[REG_RIP];
    if (code[0] != 0x0f || code[1] != 0xa2) { /* not CPUID: let the process crash as usual */
        signal(number, SIG_DFL);
        return;
    }
    (void)info;
    unsigned leaf = (unsigned)registers[REG_RAX], subleaf = (unsigned)registers[REG_RCX], a, b, c, d;
    let_cpuid(1);
    __cpuid_count(leaf, subleaf, a, b, c, d);
    let_cpuid(0);
    if (leaf == 7 && subleaf == 0) b &= ~EBX_7_0, c &= ~ECX_7_0, d &= ~EDX_7_0;
    if (leaf == 7 && subleaf == 1) a &= ~EAX_7_1, d &= ~EDX_7_1;
    registers[REG_RAX] = a, registers[REG_RBX] = b, registers[REG_RCX] = c, registers[REG_RDX] = d;
    registers[REG_RIP] += 2;
}

__attribute__((constructor)) static void hide(void) {
    struct sigaction action = {.sa_sigaction = answer, .sa_flags = SA_SIGINFO | SA_NODEFER};
    if (sigaction(SIGSEGV, &action, NULL) != 0 || let_cpuid(0) != 0) {
        fputs("This processor or kernel cannot hide features: it has no cpuid_fault.\n", stderr);
        exit(1);
    }
}
