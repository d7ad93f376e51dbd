using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Measurement.Benchmarks;

/// <summary>
/// Guest programs for the cost of one interpreted instruction. Each takes its number of iterations in R15, the address of
/// <see cref="DataBytes"/> of scratch memory in R14, and ends with <c>hlt</c>.
/// </summary>
public static class InterpreterKernels
{
    /// <summary>Bytes of scratch memory that a kernel may use.</summary>
    public const int DataBytes = 1 << 20;

    /// <summary>Names of all kernels.</summary>
    public static IReadOnlyList<string> Names { get; } =
    ["alu-loop", "sha256-round", "crc32-table", "list-matrix-state", "fib", "bytecode-switch", "stream", "sse2"];

    /// <summary>Machine code of one kernel for the address where it will lie.</summary>
    /// <param name="name">One of <see cref="Names"/>.</param>
    /// <param name="address">Linear address of its first byte.</param>
    /// <exception cref="ArgumentException">There is no such kernel.</exception>
    public static byte[] Assemble(string name, ulong address)
    {
        var a = new Assembler(64);
        switch (name)
        {
            case "alu-loop":
                AluLoop(a);
                break;
            case "sha256-round":
                Sha256Round(a);
                break;
            case "crc32-table":
                Crc32(a);
                break;
            case "list-matrix-state":
                ListMatrixState(a);
                break;
            case "fib":
                Fib(a);
                break;
            case "bytecode-switch":
                BytecodeSwitch(a);
                break;
            case "stream":
                Stream(a);
                break;
            case "sse2":
                Sse2(a);
                break;
            default:
                throw new ArgumentException($"no kernel '{name}'; there are {string.Join(", ", Names)}", nameof(name));
        }

        var stream = new MemoryStream();
        a.Assemble(new StreamCodeWriter(stream), address);
        return stream.ToArray();
    }

    private static void Loop(Assembler a, Action body)
    {
        Label top = a.CreateLabel();
        a.Label(ref top);
        body();
        a.dec(r15);
        a.jnz(top);
    }

    private static void AluLoop(Assembler a)
    {
        a.xor(eax, eax);
        a.mov(ebx, 0x1234567);
        Loop(
            a,
            () =>
            {
                a.add(rax, rbx);
                a.lea(rcx, __[rax + rbx * 4 + 7]);
                a.xor(rbx, rcx);
                a.rol(rbx, 13);
                a.sub(rax, rcx);
                a.and(ecx, 0xFF);
                a.or(rax, rcx);
                a.imul(rbx, rbx, 3);
            }
        );
        a.hlt();
    }

    // One SHA-256 compression round an iteration: FIPS 180-4, section 6.2.2, with the eight variables in registers.
    private static void Sha256Round(Assembler a)
    {
        AssemblerRegister32[] v = [eax, ebx, ecx, edx, esi, edi, r8d, r9d];
        for (int i = 0; i < 8; i++)
        {
            a.mov(v[i], 0x6A09E667 + (i * 0x1234567));
        }

        Loop(
            a,
            () =>
            {
                // S1 = e ror 6 ^ e ror 11 ^ e ror 25; ch = g ^ (e & (f ^ g))
                a.mov(r10d, v[4]);
                a.ror(r10d, 6);
                a.mov(r11d, v[4]);
                a.ror(r11d, 11);
                a.xor(r10d, r11d);
                a.ror(r11d, 14);
                a.xor(r10d, r11d);
                a.mov(r11d, v[5]);
                a.xor(r11d, v[6]);
                a.and(r11d, v[4]);
                a.xor(r11d, v[6]);
                a.add(r10d, r11d);
                a.add(r10d, v[7]);
                a.add(r10d, 0x428A2F98);
                // S0 and maj
                a.mov(r11d, v[0]);
                a.ror(r11d, 2);
                a.mov(r12d, v[0]);
                a.ror(r12d, 13);
                a.xor(r11d, r12d);
                a.ror(r12d, 9);
                a.xor(r11d, r12d);
                a.mov(r12d, v[0]);
                a.and(r12d, v[1]);
                a.mov(r13d, v[0]);
                a.or(r13d, v[1]);
                a.and(r13d, v[2]);
                a.or(r12d, r13d);
                a.add(r11d, r12d);
                for (int i = 7; i > 0; i--)
                {
                    a.mov(v[i], v[i - 1]);
                }

                a.add(v[4], r10d);
                a.lea(v[0], __[r10 + r11]);
            }
        );
        a.hlt();
    }

    // Builds the reflected CRC-32 table, then runs it over a kilobyte of it an iteration.
    private static void Crc32(Assembler a)
    {
        Label entry = a.CreateLabel();
        Label bit = a.CreateLabel();
        a.xor(ecx, ecx);
        a.Label(ref entry);
        a.mov(eax, ecx);
        a.mov(edx, 8);
        a.Label(ref bit);
        a.mov(ebx, eax);
        a.and(ebx, 1);
        a.neg(ebx);
        a.and(ebx, 0xEDB88320u);
        a.shr(eax, 1);
        a.xor(eax, ebx);
        a.dec(edx);
        a.jnz(bit);
        a.mov(__dword_ptr[r14 + rcx * 4], eax);
        a.inc(ecx);
        a.cmp(ecx, 256);
        a.jb(entry);
        a.mov(eax, -1);
        Loop(
            a,
            () =>
            {
                Label next = a.CreateLabel();
                a.xor(ecx, ecx);
                a.Label(ref next);
                a.movzx(edx, __byte_ptr[r14 + rcx]);
                a.movzx(ebx, al);
                a.xor(edx, ebx);
                a.shr(eax, 8);
                a.xor(eax, __dword_ptr[r14 + rdx * 4]);
                a.inc(rcx);
                a.cmp(rcx, 1024);
                a.jne(next);
            }
        );
        a.hlt();
    }

    // A walk of a 256-node list, one 4×4 matrix product and a state machine over 64 bytes an iteration.
    private static void ListMatrixState(Assembler a)
    {
        Label build = a.CreateLabel();
        a.xor(ecx, ecx);
        a.Label(ref build);
        a.imul(eax, ecx, 167); // odd: a permutation of the nodes
        a.add(eax, 1);
        a.and(eax, 255);
        a.shl(rax, 4);
        a.add(rax, r14);
        a.mov(edx, ecx);
        a.shl(rdx, 4);
        a.mov(__[r14 + rdx], rax);
        a.mov(__dword_ptr[r14 + rdx + 8], ecx);
        a.inc(ecx);
        a.cmp(ecx, 256);
        a.jb(build);
        a.xor(edi, edi);
        Loop(
            a,
            () =>
            {
                Label walk = a.CreateLabel();
                a.mov(rsi, r14);
                a.mov(ecx, 64);
                a.Label(ref walk);
                a.add(edi, __dword_ptr[rsi + 8]);
                a.mov(rsi, __[rsi]);
                a.dec(ecx);
                a.jnz(walk);

                Label row = a.CreateLabel();
                Label column = a.CreateLabel();
                Label inner = a.CreateLabel();
                a.xor(r8d, r8d);
                a.Label(ref row);
                a.xor(r9d, r9d);
                a.Label(ref column);
                a.xor(eax, eax);
                a.xor(r10d, r10d);
                a.Label(ref inner);
                a.lea(ecx, __[r10 + r8 * 4]);
                a.mov(edx, __dword_ptr[r14 + rcx * 4]);
                a.lea(ecx, __[r9 + r10 * 4]);
                a.imul(edx, __dword_ptr[r14 + rcx * 4 + 64]);
                a.add(eax, edx);
                a.inc(r10d);
                a.cmp(r10d, 4);
                a.jne(inner);
                a.lea(ecx, __[r9 + r8 * 4]);
                a.mov(__dword_ptr[r14 + rcx * 4 + 8192], eax);
                a.inc(r9d);
                a.cmp(r9d, 4);
                a.jne(column);
                a.inc(r8d);
                a.cmp(r8d, 4);
                a.jne(row);

                Label step = a.CreateLabel();
                Label odd = a.CreateLabel();
                Label joined = a.CreateLabel();
                a.xor(ecx, ecx);
                a.xor(eax, eax);
                a.Label(ref step);
                a.movzx(edx, __byte_ptr[r14 + rcx * 8]);
                a.test(dl, 1);
                a.jnz(odd);
                a.add(eax, 3);
                a.jmp(joined);
                a.Label(ref odd);
                a.lea(eax, __[rax + rax * 2]);
                a.Label(ref joined);
                a.and(eax, 0xF);
                a.inc(ecx);
                a.cmp(ecx, 64);
                a.jne(step);
                a.add(edi, eax);
            }
        );
        a.hlt();
    }

    // fib(12) an iteration: 465 calls.
    private static void Fib(Assembler a)
    {
        Label fib = a.CreateLabel();
        Label leaf = a.CreateLabel();
        Loop(
            a,
            () =>
            {
                a.mov(edi, 12);
                a.call(fib);
            }
        );
        a.hlt();
        a.Label(ref fib);
        a.cmp(edi, 2);
        a.jb(leaf);
        a.push(rbx);
        a.push(rdi);
        a.dec(edi);
        a.call(fib);
        a.mov(ebx, eax);
        a.pop(rdi);
        a.sub(edi, 2);
        a.call(fib);
        a.add(eax, ebx);
        a.pop(rbx);
        a.ret();
        a.Label(ref leaf);
        a.mov(eax, edi);
        a.ret();
    }

    // A byte-code interpreter: 8 opcodes through a jump table, 256 byte codes an iteration.
    private static void BytecodeSwitch(Assembler a)
    {
        Label dispatch = a.CreateLabel();
        Label done = a.CreateLabel();
        Label fill = a.CreateLabel();
        var handlers = new Label[8];
        for (int i = 0; i < handlers.Length; i++)
        {
            handlers[i] = a.CreateLabel();
        }

        a.xor(ecx, ecx);
        a.Label(ref fill);
        a.imul(eax, ecx, 0x9E3779B1u.ToInt());
        a.shr(eax, 29);
        a.mov(__byte_ptr[r14 + rcx], al);
        a.inc(ecx);
        a.cmp(ecx, 256);
        a.jb(fill);
        a.lea(r13, __[r14 + 0x1000]);
        for (int i = 0; i < handlers.Length; i++)
        {
            a.lea(rax, __[handlers[i]]);
            a.mov(__[r13 + (8 * i)], rax);
        }

        a.xor(eax, eax);
        a.mov(ebx, 1);
        Loop(
            a,
            () =>
            {
                a.mov(rsi, r14);
                a.lea(rdi, __[r14 + 256]);
                a.Label(ref dispatch);
                a.cmp(rsi, rdi);
                a.je(done);
                a.movzx(ecx, __byte_ptr[rsi]);
                a.inc(rsi);
                a.jmp(__qword_ptr[r13 + rcx * 8]);
                for (int i = 0; i < handlers.Length; i++)
                {
                    a.Label(ref handlers[i]);
                    switch (i % 4)
                    {
                        case 0:
                            a.add(eax, ebx);
                            break;
                        case 1:
                            a.xor(eax, i);
                            break;
                        case 2:
                            a.lea(ebx, __[rbx + rax + 1]);
                            break;
                        default:
                            a.sub(eax, ebx);
                            break;
                    }

                    a.jmp(dispatch);
                }

                a.Label(ref done);
                a.nop();
            }
        );
        a.hlt();
    }

    // c[i] = a[i] + 3·b[i] over three arrays of 64 KiB an iteration, 8 bytes at a time.
    private static void Stream(Assembler a)
    {
        Loop(
            a,
            () =>
            {
                Label next = a.CreateLabel();
                a.xor(ecx, ecx);
                a.Label(ref next);
                a.mov(rax, __[r14 + rcx]);
                a.mov(rdx, __[r14 + rcx + 0x1_0000]);
                a.lea(rdx, __[rdx + rdx * 2]);
                a.add(rax, rdx);
                a.mov(__[r14 + rcx + 0x2_0000], rax);
                a.add(rcx, 8);
                a.cmp(rcx, 0x1_0000);
                a.jne(next);
            }
        );
        a.hlt();
    }

    private static void Sse2(Assembler a)
    {
        a.mov(eax, 3);
        a.cvtsi2sd(xmm0, eax);
        a.unpcklpd(xmm0, xmm0);
        a.movapd(xmm1, xmm0);
        a.sqrtpd(xmm2, xmm0);
        a.pxor(xmm5, xmm5);
        Loop(
            a,
            () =>
            {
                a.movapd(xmm3, xmm1);
                a.mulpd(xmm3, xmm2);
                a.addpd(xmm3, xmm0);
                a.divpd(xmm1, xmm3);
                a.maxpd(xmm1, xmm2);
                a.movupd(xmm4, __[r14]);
                a.paddd(xmm4, xmm1);
                a.pxor(xmm5, xmm4);
                a.movapd(__[r14 + 64], xmm5);
                a.mulsd(xmm3, xmm2);
            }
        );
        a.hlt();
    }

    private static int ToInt(this uint value) => unchecked((int)value);
}
