using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Workloads;

// Characters to the console, a string at a time.
internal sealed partial class MiniOsKernel
{
    private Label _print;
    private Label _printHexadecimal;
    private Label _printDecimal;

    private void EmitConsole()
    {
        EmitPrint();
        EmitPrintHexadecimal();
        EmitPrintDecimal();
    }

    /// <summary>The string at rsi, behind its length. Clobbers rax, rcx, rdx, rsi, rdi, r11 and flags.</summary>
    private void EmitPrint()
    {
        GuestAssembler a = _a;
        a.Label(ref _print);
        a.lea(rdi, __[rsi + 8]);
        a.mov(rsi, __[rsi]);
        a.ConsoleWrite();
        a.ret();
    }

    /// <summary>rdi in 16 digits. Clobbers rax, rcx, rdx, rsi, rdi, r11 and flags.</summary>
    private void EmitPrintHexadecimal()
    {
        const int digits = 16;
        GuestAssembler a = _a;
        Label next = a.CreateLabel();
        Label digit = a.CreateLabel();
        a.Label(ref _printHexadecimal);
        a.sub(rsp, digits);
        a.xor(ecx, ecx);
        a.Label(ref next);
        a.rol(rdi, 4);
        a.mov(eax, edi);
        a.and(eax, 15);
        a.add(eax, '0');
        a.cmp(eax, '9');
        a.jbe(digit);
        a.add(eax, 'a' - '9' - 1);
        a.Label(ref digit);
        a.mov(__[rsp + rcx], al);
        a.inc(ecx);
        a.cmp(ecx, digits);
        a.jne(next);
        a.mov(rdi, rsp);
        a.mov(esi, digits);
        a.ConsoleWrite();
        a.add(rsp, digits);
        a.ret();
    }

    /// <summary>rdi in as many digits as it has. Clobbers rax, rcx, rdx, rsi, rdi, r11 and flags.</summary>
    private void EmitPrintDecimal()
    {
        const int most = 24; // 2^64 has 20 digits
        GuestAssembler a = _a;
        Label divide = a.CreateLabel();
        a.Label(ref _printDecimal);
        a.sub(rsp, most);
        a.mov(rax, rdi);
        a.lea(rdi, __[rsp + most]);
        a.mov(ecx, 10);
        a.Label(ref divide);
        a.xor(edx, edx);
        a.div(rcx);
        a.add(edx, '0');
        a.dec(rdi);
        a.mov(__[rdi], dl);
        a.test(rax, rax);
        a.jne(divide);
        a.lea(rsi, __[rsp + most]);
        a.sub(rsi, rdi);
        a.ConsoleWrite();
        a.add(rsp, most);
        a.ret();
    }
}
