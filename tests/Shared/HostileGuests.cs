using System.Runtime.Intrinsics.X86;
using Iced.Intel;
using VirtBench.Strategies;
using VirtBench.Strategies.BinaryTranslation;
using VirtBench.Strategies.Hardware;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Tests;

/// <summary>Guests that do what they must not, and what must come of each on the host's CPU and on the simulated one.</summary>
internal static partial class HostileGuests
{
    // Where the boot protocol puts the page tables; the window and its parts as docs/carrier.md gives them.
    private const ulong Pml4 = 0x1_3000;
    private const ulong PageDirectoryPointers = 0x1_4000;
    private const ulong PageDirectory = 0x1_5000;
    private const ulong Window = 0x7FFF_FFC0_0000;
    private const ulong ControlPage = Window + 0x1000;
    private const ulong RegisterFile = Window + 0x1_0000;

    private const int Usable = 0;
    private const int TimedOut = 124;
    private const int Broken = 125;

    private sealed record HostileGuest(
        Action<Assembler> Write,
        int OnHost,
        string HostSays,
        int Simulated,
        string SimulatorSays,
        params string[] Arguments
    )
    {
        public HostileGuest(Action<Assembler> write, int code, string says, params string[] arguments)
            : this(write, code, says, code, says, arguments) { }
    }

    private static readonly Dictionary<string, HostileGuest> Programs = new()
    {
        ["triple fault"] = new(a => a.ud2(), Broken, "(ud2 [0F0B])"),
        ["jump to nowhere"] = new(a => Jump(a, 0xDEAD_BEEF_0000), Broken, "triple fault"),
        ["jump to a non-canonical address"] = new(a => Jump(a, 0x8000_0000_0000_0000), Broken, "triple fault"),
        ["jump beyond RAM"] = new(a => Jump(a, 0x3000_0000), Broken, "no RAM"),
        ["endless loop"] = new(Forever, TimedOut, "did not end in time", "--timeout", "0.3"),
        ["endless loop of traps"] = new(
            a =>
            {
                Label again = a.CreateLabel();
                a.Label(ref again);
                a.cli();
                a.jmp(again);
            },
            TimedOut,
            "did not end in time",
            "--timeout",
            "0.3"
        ),
        ["halt with interrupts off"] = new(
            a =>
            {
                a.cli();
                a.hlt();
            },
            Broken,
            "HLT"
        ),
        ["endless string instruction over RAM"] = new(
            a =>
            {
                Label again = a.CreateLabel();
                a.Label(ref again);
                a.mov(rsi, 0x20_0000);
                a.mov(rcx, 0x3E0_0000);
                a.rep.lodsb();
                a.jmp(again);
            },
            TimedOut,
            "did not end in time",
            "--timeout",
            "0.3"
        ),
        ["endless string instruction beyond RAM"] = new(
            a =>
            {
                a.mov(rdi, 0x800_0000);
                a.mov(rcx, 0x3000_0000);
                a.rep.stosb();
            },
            TimedOut,
            "did not end in time",
            "--timeout",
            "0.3"
        ),
        ["endless string input"] = new(
            a =>
            {
                Label again = a.CreateLabel();
                a.Label(ref again);
                a.mov(rdi, 0x20_0000);
                a.mov(rcx, 0x3E0_0000);
                a.mov(dx, 0x80);
                a.rep.insb();
                a.jmp(again);
            },
            TimedOut,
            "did not end in time",
            "--timeout",
            "0.3"
        ),
        ["address below 64 KiB"] = new(
            a =>
            {
                a.mov(al, __byte_ptr[0x1000]);
                Exit(a, 0);
            },
            Broken,
            "0x1000, below 0x10000",
            Usable,
            ""
        ),
        ["address 0"] = new(
            a =>
            {
                a.xor(eax, eax);
                a.mov(__byte_ptr[rax], al);
                Exit(a, 0);
            },
            Broken,
            "0x0, below 0x10000",
            Usable,
            ""
        ),
        ["address above the limit"] = new(
            a =>
            {
                a.mov(rax, PageDirectory | 3);
                a.mov(__qword_ptr[PageDirectoryPointers + (511 * 8)], rax);
                a.mov(rax, PageDirectoryPointers | 3);
                a.mov(__qword_ptr[Pml4 + (255 * 8)], rax);
                a.mov(rax, 0x7FFF_C020_0000);
                a.mov(al, __byte_ptr[rax]);
                Exit(a, 0);
            },
            Broken,
            "0x7FFFC0200000, at or above",
            Usable,
            ""
        ),
        ["address in the upper half"] = new(
            a =>
            {
                a.mov(rax, PageDirectoryPointers | 3);
                a.mov(__qword_ptr[Pml4 + (256 * 8)], rax);
                a.mov(rax, 0xFFFF_8000_0020_0000);
                a.mov(al, __byte_ptr[rax]);
                Exit(a, 0);
            },
            Broken,
            "0xFFFF800000200000, at or above",
            Usable,
            ""
        ),
        ["jump into the stub"] = new(a => Jump(a, Window), Broken, "", Broken, "triple fault"),
        ["jump into the middle of the stub"] = new(a => Jump(a, Window + 0x123), Broken, "", Broken, "triple fault"),
        ["jump into the control page"] = new(a => Jump(a, ControlPage), Broken, "", Broken, "triple fault"),
        ["zeroes over the control page"] = new(
            a => Fill(a, ControlPage, 0x8000, 0),
            Broken,
            "",
            Broken,
            "triple fault"
        ),
        ["ones over the control page"] = new(
            a => Fill(a, ControlPage, 0x8000, 0xFF),
            Broken,
            "",
            Broken,
            "triple fault"
        ),
        ["zeroes over the register file"] = new(
            a => Fill(a, RegisterFile, 0x1_0000, 0),
            Broken,
            "",
            Broken,
            "triple fault"
        ),
        ["write to the stub"] = new(a => Fill(a, Window, 8, 0), Broken, "triple fault"),
        ["vmcall"] = new(a => a.vmcall(), Broken, ""),
        ["xsetbv"] = new(a => a.xsetbv(), Broken, ""),
        ["mov to CR5"] = new(a => a.db(0x0F, 0x22, 0xE8), Broken, ""),
        ["x87"] = new(
            a =>
            {
                a.fld1();
                Exit(a, 0);
            },
            Usable,
            "",
            Broken,
            "fld1"
        ),
        ["AVX"] = new(
            a =>
            {
                a.vzeroupper();
                Exit(a, 0);
            },
            Avx.IsSupported ? Usable : Broken,
            "",
            Broken,
            "vzeroupper"
        ),
        ["system call of the host"] = new(
            a =>
            {
                a.mov(eax, 60); // exit, to Linux
                a.xor(edi, edi);
                a.syscall();
            },
            Broken,
            "triple fault: #UD"
        ),
        ["system call of the host, 32-bit"] = new(
            a =>
            {
                a.mov(eax, 1); // exit, to Linux on i386
                a.@int(0x80);
            },
            Broken,
            "triple fault"
        ),
        ["sysenter"] = new(a => a.sysenter(), Broken, ""),
        ["breakpoint"] = new(a => a.int3(), Broken, "triple fault"),
        ["trap flag"] = new(
            a =>
            {
                a.pushfq();
                a.or(__qword_ptr[rsp], 0x100);
                a.popfq();
                a.nop();
            },
            Broken,
            "triple fault"
        ),
        ["stack nowhere"] = new(
            a =>
            {
                a.mov(rsp, 0x1234_5678_9000);
                a.push(rax);
            },
            Broken,
            "triple fault"
        ),
        ["page tables beyond RAM"] = new(
            a =>
            {
                a.mov(rax, 0x7FFF_F000);
                a.mov(cr3, rax);
            },
            Broken,
            ""
        ),
        ["empty page tables"] = new(
            a =>
            {
                a.mov(eax, 0x20_0000);
                a.mov(cr3, rax);
            },
            Broken,
            "triple fault"
        ),
        ["paging off"] = new(
            a =>
            {
                a.mov(rax, cr0);
                a.and(eax, 0x7FFF_FFFF);
                a.mov(cr0, rax);
            },
            Broken,
            ""
        ),
        ["regions without end"] = new(
            a =>
            {
                Label again = a.CreateLabel();
                a.mov(ecx, 5000);
                a.Label(ref again);
                a.@out(0xB0, eax);
                a.@out(0xB4, eax);
                a.dec(ecx);
                a.jnz(again);
                Exit(a, 0);
            },
            Broken,
            "4096 regions"
        ),
        ["region in a region"] = new(
            a =>
            {
                a.@out(0xB0, eax);
                a.@out(0xB0, eax);
                Exit(a, 0);
            },
            Broken,
            "do not nest"
        ),
        ["end of no region"] = new(a => a.@out(0xB4, eax), Broken, "measurement port 0xB4"),
        ["byte to a measurement port"] = new(a => a.@out(0xB0, al), Broken, "a write of 1 bytes"),
        ["word to a measurement port"] = new(a => a.@out(0xB8, ax), Broken, "a write of 2 bytes"),
        ["doubleword across a measurement port"] = new(a => a.@out(0xB1, eax), Broken, "measurement port 0xB1"),
        ["input from a measurement port"] = new(
            a =>
            {
                a.@in(eax, 0xB0);
                Exit(a, 0);
            },
            Usable,
            ""
        ),
        ["port without a device"] = new(
            a =>
            {
                a.@in(al, 0x80);
                Exit(a, 0);
            },
            Usable,
            ""
        ),
        ["port without a device, strict"] = new(
            a =>
            {
                a.@in(al, 0x80);
                Exit(a, 0);
            },
            Broken,
            "port 0x80",
            "--strict"
        ),
        ["address without RAM, strict"] = new(
            a =>
            {
                a.mov(al, __byte_ptr[0x3000_0000]);
                Exit(a, 0);
            },
            Broken,
            "0x30000000",
            "--strict"
        ),
        ["overwritten boot area"] = new(a => Fill(a, 0x1_0000, 0x2_0000, 0xFF), Broken, ""),
        ["code that overwrites itself"] = new(a => Fill(a, GuestFile.CodeStart, 0x1000, 0xF4), Broken, ""),
    };

    /// <summary>
    /// What comes of a guest whose ring 0 is the processor's, where it differs from a deprivileged one: all of the address space is
    /// its own, and a triple fault is the processor's to find.
    /// </summary>
    private static readonly Dictionary<string, (int Code, string Says)> OnHardware = new()
    {
        ["triple fault"] = (Broken, "triple fault"),
        ["address below 64 KiB"] = (Usable, ""),
        ["address 0"] = (Usable, ""),
        ["address above the limit"] = (Usable, ""),
        ["address in the upper half"] = (Usable, ""),
        ["AVX"] = (Broken, "triple fault"), // CR4.OSXSAVE is clear
        ["system call of the host"] = (Broken, "triple fault"),
    };

    /// <summary>Guests that fare otherwise than under direct execution: the translator knows what the platform does not have.</summary>
    private static readonly Dictionary<string, (int, string)> Translated = new() { ["AVX"] = (Broken, "vzeroupper") };

    /// <summary>Guests whose instruction is lacking where a module emulates ring 0.</summary>
    private static readonly HashSet<string> BeyondEmulation =
    [
        "x87",
        "AVX",
        "breakpoint",
        "system call of the host, 32-bit",
    ];

    private static HostileGuest Find(string name) => Programs.GetValueOrDefault(name) ?? Kernels[name];

    public static IEnumerable<string> Names => [.. Programs.Keys, .. Kernels.Keys];

    public static byte[] FileOf(string name) => GuestFile.Of(Find(name).Write);

    public static string[] ArgumentsOf(string name) => Find(name).Arguments;

    /// <summary>What the tool must return under a strategy, and part of the one line it must say; null for silence.</summary>
    public static (int ExitCode, string? Says) Expected(string name, Strategy strategy)
    {
        HostileGuest one = Find(name);
        bool onHardware = strategy is KvmStrategy;
        (int code, string says) =
            onHardware && KvmHost.Current.RingZero == RingZeroExecution.Emulated && BeyondEmulation.Contains(name)
                ? (Broken, "the instruction emulator of")
            : onHardware && OnHardware.TryGetValue(name, out (int, string) expected) ? expected
            : strategy is BinaryTranslationStrategy && Translated.TryGetValue(name, out (int, string) refused) ? refused
            : strategy.IsSimulated ? (one.Simulated, one.SimulatorSays)
            : (one.OnHost, one.HostSays);
        return (code, code == Usable ? null : says);
    }

    private static void Forever(Assembler a)
    {
        Label again = a.CreateLabel();
        a.Label(ref again);
        a.jmp(again);
    }

    private static void Jump(Assembler a, ulong target)
    {
        a.mov(rax, target);
        a.jmp(rax);
    }

    private static void Fill(Assembler a, ulong start, int length, byte value)
    {
        a.mov(rdi, start);
        a.mov(ecx, length);
        a.mov(eax, value);
        a.rep.stosb();
        a.ud2();
    }

    private static void Exit(Assembler a, byte status)
    {
        a.mov(al, status);
        a.@out(0xF4, al);
    }
}
