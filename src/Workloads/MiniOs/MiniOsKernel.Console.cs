using Iced.Intel;
using VirtBench.Vmm.Devices;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Workloads;

// Characters to the 16550, whose transmitter is always empty on this platform.
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

    /// <summary>The string at rsi, behind its length. Clobbers rax, rcx, rdx, rsi and flags.</summary>
    private void EmitPrint()
    {
        Assembler a = _a;
        Label next = a.CreateLabel();
        a.Label(ref _print);
        a.mov(rcx, __[rsi]);
        a.mov(edx, SerialPort.FirstPort);
        a.Label(ref next);
        a.mov(al, __[rsi + 8]);
        a.@out(dx, al);
        a.inc(rsi);
        a.dec(rcx);
        a.jne(next);
        a.ret();
    }

    /// <summary>rdi in 16 digits. Clobbers rax, rcx, rdx and flags.</summary>
    private void EmitPrintHexadecimal()
    {
        Assembler a = _a;
        Label next = a.CreateLabel();
        Label digit = a.CreateLabel();
        a.Label(ref _printHexadecimal);
        a.mov(edx, SerialPort.FirstPort);
        a.mov(ecx, 16);
        a.Label(ref next);
        a.rol(rdi, 4);
        a.mov(eax, edi);
        a.and(eax, 15);
        a.add(eax, '0');
        a.cmp(eax, '9');
        a.jbe(digit);
        a.add(eax, 'a' - '9' - 1);
        a.Label(ref digit);
        a.@out(dx, al);
        a.dec(ecx);
        a.jne(next);
        a.ret();
    }

    /// <summary>rdi in as many digits as it has. Clobbers rax, rcx, rdx, r8 and flags.</summary>
    private void EmitPrintDecimal()
    {
        Assembler a = _a;
        Label divide = a.CreateLabel();
        Label next = a.CreateLabel();
        a.Label(ref _printDecimal);
        a.mov(rax, rdi);
        a.xor(r8d, r8d);
        a.mov(ecx, 10);
        a.Label(ref divide);
        a.xor(edx, edx);
        a.div(rcx);
        a.push(rdx);
        a.inc(r8d);
        a.test(rax, rax);
        a.jne(divide);
        a.mov(edx, SerialPort.FirstPort);
        a.Label(ref next);
        a.pop(rax);
        a.add(eax, '0');
        a.@out(dx, al);
        a.dec(r8d);
        a.jne(next);
        a.ret();
    }
}
