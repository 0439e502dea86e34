/* What needs C between uBPF and Rust: leaving a run early, and uBPF's variadic error callback.
 *
 * uBPF stops a program from outside only where an access is refused or one helper returns 0. A
 * fault inside a helper, the instruction limit and the like leave by longjmp instead; uBPF keeps no
 * resources during a run (its undefined-behaviour check, which would, is off). No Rust frame with
 * anything to drop lies between `bpfchain_stop` and the setjmp.
 */
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

struct ubpf_vm;
typedef uint64_t (*jit_fn)(void *mem, size_t mem_len, uint8_t *stack, size_t stack_len);

int ubpf_exec_ex(const struct ubpf_vm *vm, void *mem, size_t mem_len, uint64_t *result,
                 uint8_t *stack, size_t stack_len);
void bpfchain_on_error(void);

struct level {
    jmp_buf back;
    struct level *outer;
};

/* Runs nest (callbacks, tail calls from subprograms); one thread runs at a time. */
static struct level *innermost;

/* 0: the program ended, -1: uBPF refused an access, else the code given to bpfchain_stop. */
int bpfchain_interpret(const struct ubpf_vm *vm, void *mem, size_t mem_len, uint64_t *result,
                       uint8_t *stack_top)
{
    struct level level;
    int code;

    level.outer = innermost;
    innermost = &level;
    code = _setjmp(level.back);
    if (code == 0)
        code = ubpf_exec_ex(vm, mem, mem_len, result, stack_top, 0) == 0 ? 0 : -1;
    innermost = level.outer;
    return code;
}

int bpfchain_jit(jit_fn function, void *mem, size_t mem_len, uint64_t *result, uint8_t *stack_top)
{
    struct level level;
    int code;

    level.outer = innermost;
    innermost = &level;
    code = _setjmp(level.back);
    if (code == 0)
        *result = function(mem, mem_len, stack_top, 0);
    innermost = level.outer;
    return code;
}

void bpfchain_stop(int code)
{
    longjmp(innermost->back, code);
}

/* uBPF reports refused accesses here before it returns; nothing is printed. */
int bpfchain_error(FILE *stream, const char *format, ...)
{
    (void)stream;
    (void)format;
    bpfchain_on_error();
    return 0;
}
