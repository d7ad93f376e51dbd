using Iced.Intel;
using VirtBench.Strategies;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Devices;
using VirtBench.Vmm.Execution;
using VirtBench.Vmm.Paravirtual;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Workloads.Tests;

/// <summary>Single operations on the simulated CPU, whose core serves the hypercalls.</summary>
public sealed class GuestAssemblerTests
{
    private const ulong Code = 0x10_0000;
    private const ulong Result = 0x30_0000;
    private const ulong Records = 0x31_0000;
    private const int Line = 11;

    private static readonly AssemblerMemoryOperand Mask = __qword_ptr[PhysicalLayout.SharedInfoPage];
    private static readonly AssemblerMemoryOperand Pending = __qword_ptr[PhysicalLayout.SharedInfoPage + 8];
    private static readonly AssemblerMemoryOperand DirectLines = __qword_ptr[PhysicalLayout.SharedInfoPage + 16];

    public static TheoryData<GuestInterface> Interfaces => [.. Enum.GetValues<GuestInterface>()];

    [Fact]
    public void Enabling_interrupts_serves_a_line_that_has_come_directly_with_interrupts_held_back_and_every_register_kept()
    {
        ulong[] left = Run(
            GuestInterface.Paravirtual,
            a =>
            {
                RaiseDirectly(a);
                a.mov(eax, 1);
                a.mov(r9d, 9);
                a.EnableInterrupts();
                Leave(a, 0, rax);
                Leave(a, 1, r9);
            },
            serve: true
        );
        Assert.Equal((1UL, 9UL), (left[0], left[1]));
        Assert.Equal((1UL, 1UL), (left[8], left[9])); // served once, masked
    }

    [Fact]
    public void A_line_that_nobody_serves_is_taken_away()
    {
        ulong[] left = Run(
            GuestInterface.Paravirtual,
            a =>
            {
                RaiseDirectly(a);
                a.EnableInterrupts();
                a.mov(rax, DirectLines);
                Leave(a, 0, rax);
                a.mov(rax, Pending);
                Leave(a, 1, rax);
            }
        );
        Assert.Equal([0UL, 0UL], left[..2]);
    }

    [Theory]
    [InlineData(0, 1)]
    [InlineData(1, 0)]
    public void Restoring_the_interrupt_flag_serves_what_is_pending_only_when_that_lets_interrupts_in(
        int mask,
        ulong served
    )
    {
        ulong[] left = Run(
            GuestInterface.Paravirtual,
            a =>
            {
                RaiseDirectly(a);
                a.push(mask);
                a.RestoreInterruptFlag();
                a.mov(rax, Mask);
                Leave(a, 0, rax);
            },
            serve: true
        );
        Assert.Equal(((ulong)mask, served), (left[0], left[8]));
    }

    [Fact]
    public void Waiting_and_polling_serve_a_line_that_has_come_directly()
    {
        ulong[] left = Run(
            GuestInterface.Paravirtual,
            a =>
            {
                RaiseDirectly(a);
                a.WaitForInterrupt();
                a.mov(rax, Mask);
                Leave(a, 0, rax);
                RaiseDirectly(a);
                a.EnableInterrupts();
                RaiseDirectly(a);
                a.PollInterrupts();
                a.mov(rax, Mask);
                Leave(a, 1, rax);
            },
            serve: true
        );
        Assert.Equal((1UL, 0UL), (left[0], left[1]));
        Assert.Equal(3UL, left[8]);
    }

    [Theory]
    [MemberData(nameof(Interfaces))]
    public void A_saved_interrupt_flag_comes_back(GuestInterface guestInterface)
    {
        var disabled = new List<ulong>();
        foreach (bool enabled in (bool[])[false, true])
        {
            ulong[] left = Run(
                guestInterface,
                a =>
                {
                    if (enabled)
                    {
                        a.EnableInterrupts();
                    }

                    a.SaveInterruptFlag();
                    a.DisableInterrupts();
                    a.RestoreInterruptFlag();
                    a.SaveInterruptFlag();
                    a.pop(rax);
                    Leave(a, 0, rax);
                }
            );
            disabled.Add(guestInterface == GuestInterface.Native ? left[0] & 0x200 : left[0]);
        }

        Assert.Equal(guestInterface == GuestInterface.Native ? [0UL, 0x200] : [1UL, 0], disabled);
    }

    [Theory]
    [InlineData(0, 0)]
    [InlineData(3, 0)]
    [InlineData(0, 5)]
    public void The_time_is_what_the_clock_makes_of_the_counter(int leftShift, int rightShift)
    {
        // A clock of the guest's own making: the page is memory that it may write.
        const uint multiplier = 0xC000_0000;
        const ulong systemTime = 1_000_000_007;
        var clock = new ParavirtualClock
        {
            SystemTime = systemTime,
            TscToSystemMultiplier = multiplier,
            TscShift = (sbyte)(leftShift - rightShift),
        };
        ulong[] left = Run(
            GuestInterface.Paravirtual,
            a =>
            {
                a.mov(edi, (uint)PhysicalLayout.SharedInfoPage + 0x40);
                a.mov(__qword_ptr[rdi + 8], 0);
                a.mov(__qword_ptr[rdi + 16], (int)systemTime);
                a.mov(eax, multiplier);
                a.mov(__dword_ptr[rdi + 24], eax);
                a.mov(__byte_ptr[rdi + 28], (int)clock.TscShift);
                ReadTimeStamp(a);
                Leave(a, 0, rax);
                a.ReadTime();
                Leave(a, 1, rax);
                ReadTimeStamp(a);
                Leave(a, 2, rax);
            }
        );
        Assert.InRange(left[1], clock.Nanoseconds(left[0]), clock.Nanoseconds(left[2]));
        Assert.True(left[0] < left[2]);
    }

    [Theory]
    [MemberData(nameof(Interfaces))]
    public void A_batch_of_updates_writes_every_entry_and_flushes(GuestInterface guestInterface)
    {
        const int count = 32;
        const ulong entries = 0x32_0000;
        ulong[] left = Run(
            guestInterface,
            a =>
            {
                a.mov(edi, (uint)Records);
                a.mov(esi, count);
                a.UpdatePageTables();
                for (int i = 0; i < count; i++)
                {
                    a.mov(rax, __qword_ptr[entries + ((ulong)i * 8)]);
                    a.add(__qword_ptr[Result], rax);
                }
            },
            data: [.. Enumerable.Range(0, count).SelectMany(i => new[] { entries + ((ulong)i * 8), 1UL << i })]
        );
        Assert.Equal((1UL << count) - 1, left[0]);
    }

    [Theory]
    [MemberData(nameof(Interfaces))]
    public void The_console_gets_every_character(GuestInterface guestInterface)
    {
        var console = new List<byte>();
        _ = Run(
            guestInterface,
            a =>
            {
                a.mov(edi, (uint)Records);
                a.mov(esi, 8);
                a.ConsoleWrite();
            },
            data: [0x0807_0605_0403_0201],
            console: console
        );
        Assert.Equal([1, 2, 3, 4, 5, 6, 7, 8], console);
    }

    [Fact]
    public void Nothing_of_the_paravirtual_interface_is_in_a_native_program()
    {
        var a = new GuestAssembler(GuestInterface.Native);
        a.DisableInterrupts();
        a.EnableInterrupts();
        a.PollInterrupts();
        a.ReadTime();
        a.WriteCr3(rsi);
        a.InvalidatePage(r9);
        a.ReadFaultAddress(rax);
        a.InterruptReturn();
        a.EmitOutOfLine();
        Assert.Equal(
            [Mnemonic.Cli, Mnemonic.Sti, Mnemonic.Rdtsc, Mnemonic.Mov, Mnemonic.Invlpg, Mnemonic.Mov, Mnemonic.Iretq],
            a.Instructions.Select(instruction => instruction.Mnemonic)
        );
    }

    // What a device's thread does.
    private static void RaiseDirectly(GuestAssembler a)
    {
        a.mov(eax, 1 << Line);
        a.@lock.or(DirectLines, rax);
        a.@lock.or(Pending, (int)SharedInformation.PendingDirectly);
    }

    private static void ReadTimeStamp(GuestAssembler a)
    {
        a.rdtsc();
        a.shl(rdx, 32);
        a.or(rax, rdx);
    }

    private static void Leave(GuestAssembler a, int index, AssemblerRegister64 value) =>
        a.mov(__qword_ptr[Result + ((ulong)index * 8)], value);

    private static ulong[] Run(
        GuestInterface guestInterface,
        Action<GuestAssembler> program,
        bool serve = false,
        ulong[]? data = null,
        List<byte>? console = null
    )
    {
        var a = new GuestAssembler(guestInterface);
        Label service = a.CreateLabel("service");
        if (serve)
        {
            a.ServeDirectLine(Line, service);
        }

        program(a);
        a.xor(eax, eax);
        a.@out((byte)ExitPort.Port, al);
        a.Label(ref service);
        a.inc(__qword_ptr[Result + 64]);
        a.mov(rax, Mask);
        a.mov(__qword_ptr[Result + 72], rax);
        foreach (AssemblerRegister64 register in (AssemblerRegister64[])[rax, rcx, rdx, rsi, rdi, r8, r9, r10, r11])
        {
            a.mov(register, -1); // what it may clobber
        }

        a.ret();
        a.EmitOutOfLine();
        using var code = new MemoryStream();
        a.Assemble(new StreamCodeWriter(code), Code);
        byte[] bytes = new byte[(data?.Length ?? 0) * 8];
        Buffer.BlockCopy(data ?? [], 0, bytes, 0, bytes.Length);

        Strategy strategy = StrategyCatalog.Find(
            guestInterface == GuestInterface.Native ? "simulated-binary-translation" : "simulated-paravirtual"
        )!;
        using var machine = new VirtualMachine(4 << 20, strategy.CreateEngine);
        machine.Serial.Transmitted = value => console?.Add(value);
        machine.Load(
            new GuestImage(
                "operations",
                Code,
                [
                    new ImageSegment(Code, code.ToArray(), (ulong)code.Length, Executable: true),
                    new ImageSegment(Records, bytes, 0x1000, Executable: false),
                ]
            ),
            new BootOptions { Paravirtual = guestInterface == GuestInterface.Paravirtual }
        );
        RunOutcome outcome = machine.Run(cancellation: TestContext.Current.CancellationToken);
        Assert.Equal((RunEnd.Exited, null, 0), (outcome.End, outcome.Message, outcome.Status));
        return [.. Enumerable.Range(0, 10).Select(i => machine.Memory.Read<ulong>(Result + ((ulong)i * 8)))];
    }
}
