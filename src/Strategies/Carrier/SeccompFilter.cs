using System.Runtime.InteropServices;
using VirtBench.Strategies.Native;

namespace VirtBench.Strategies.Carrier;

/// <summary>One instruction of classic BPF (struct sock_filter).</summary>
[StructLayout(LayoutKind.Sequential)]
internal readonly record struct BpfInstruction(ushort Code, byte JumpTrue, byte JumpFalse, uint K);

/// <summary>
/// What a carrier may ask of the kernel after set-up. Every system call from outside the stub raises SIGSYS (where syscall
/// user dispatch has not done so before), which is how a guest's SYSCALL and INT 0x80 reach the VMM. From the stub, which a guest may jump into with registers of its
/// choice: rt_sigreturn and rt_sigprocmask, futex to wait and wake, exit_group, and mmap of guest RAM, munmap and mprotect below the window.
/// Memory of any other kind (anonymous, private copies) it cannot get, so what it can use up is what the VM was given.
/// </summary>
internal static class SeccompFilter
{
    private const ushort LoadWord = 0x20; // BPF_LD | BPF_W | BPF_ABS
    private const ushort JumpEqual = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
    private const ushort JumpGreaterOrEqual = 0x35; // BPF_JMP | BPF_JGE | BPF_K
    private const ushort Return = 0x06; // BPF_RET | BPF_K
    private const ushort And = 0x54; // BPF_ALU | BPF_AND | BPF_K
    private const ushort CopyToX = 0x07; // BPF_MISC | BPF_TAX
    private const ushort AddX = 0x0C; // BPF_ALU | BPF_ADD | BPF_X

    private const uint Allow = 0x7FFF_0000; // SECCOMP_RET_ALLOW
    private const uint Trap = 0x0003_0000; // SECCOMP_RET_TRAP
    private const uint ArchitectureX8664 = 0xC000_003E; // AUDIT_ARCH_X86_64

    // struct seccomp_data: nr 0, arch 4, instruction_pointer 8, args[6] 16
    private const uint NumberOffset = 0;
    private const uint ArchitectureOffset = 4;
    private const uint PointerLow = 8;
    private const uint PointerHigh = 12;

    /// <summary>The program.</summary>
    public static IReadOnlyList<BpfInstruction> Program { get; } = Build();

    private static uint ArgumentLow(int index) => (uint)(16 + (8 * index));

    private static uint ArgumentHigh(int index) => ArgumentLow(index) + 4;

    private static List<BpfInstruction> Build()
    {
        var program = new List<BpfInstruction>();
        void Load(uint offset) => program.Add(new(LoadWord, 0, 0, offset));
        void Verdict(uint verdict) => program.Add(new(Return, 0, 0, verdict));
        void TrapUnless(ushort comparison, uint k)
        {
            program.Add(new(comparison, 1, 0, k));
            Verdict(Trap);
        }

        Load(ArchitectureOffset);
        TrapUnless(JumpEqual, ArchitectureX8664);
        // The pointer is that of the next instruction; the window and the stub page are aligned, so two words suffice.
        Load(PointerHigh);
        TrapUnless(JumpEqual, (uint)(CarrierLayout.Stub >> 32));
        Load(PointerLow);
        TrapUnless(JumpGreaterOrEqual, unchecked((uint)CarrierLayout.Stub));
        program.Add(new(JumpGreaterOrEqual, 0, 1, unchecked((uint)(CarrierLayout.Stub + CarrierLayout.StubSize))));
        Verdict(Trap);

        Load(NumberOffset);
        foreach (int free in (int[])[Linux.SysRtSigreturn, Linux.SysRtSigprocmask, Linux.SysExitGroup])
        {
            program.Add(new(JumpEqual, 0, 1, (uint)free));
            Verdict(Allow);
        }

        // BPF jumps count from the next instruction, forward only.
        program.Add(new(JumpEqual, 4, 0, Linux.SysFutex));
        program.Add(new(JumpEqual, 7, 0, Linux.SysMmap));
        program.Add(new(JumpEqual, 13, 0, Linux.SysMunmap));
        program.Add(new(JumpEqual, 12, 0, Linux.SysMprotect));
        Verdict(Trap);
        Load(ArgumentLow(1)); // ← futex
        program.Add(new(JumpGreaterOrEqual, 1, 0, Linux.FutexWake + 1));
        Verdict(Allow);
        Verdict(Trap);
        Load(ArgumentLow(4)); // ← mmap
        TrapUnless(JumpEqual, CarrierLayout.RamFd);
        Load(ArgumentLow(3));
        program.Add(new(And, 0, 0, unchecked((uint)~Linux.MapPopulate)));
        TrapUnless(JumpEqual, Linux.MapShared | Linux.MapFixed);

        // ← munmap, mprotect. addr.high + len.high < 0x7FFE: the range ends below 0x7FFF_0000_0000 plus a carry, under the
        // window in any case. A sum that wraps is an address the kernel refuses itself.
        Load(ArgumentHigh(0));
        program.Add(new(CopyToX, 0, 0, 0));
        Load(ArgumentHigh(1));
        program.Add(new(AddX, 0, 0, 0));
        program.Add(new(JumpGreaterOrEqual, 0, 1, 0x7FFE));
        Verdict(Trap);
        Verdict(Allow);
        return program;
    }
}
