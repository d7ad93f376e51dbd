using Iced.Intel;
using VirtBench.Vmm.Cpu;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Hardware.Tests;

public sealed class CpuidTests
{
    [Fact]
    public void Every_leaf_is_the_platforms_and_none_exits_to_the_vmm()
    {
        HardwareGuest.SkipWhereHole("cpuid");
        uint[] leaves =
        [
            .. PlatformCpuid.Leaves,
            8,
            0xB,
            0xD,
            0x15,
            0xFFFF,
            0x4000_0001,
            0x4000_0100,
            0x4FFF_FFFF,
            0x5000_0000,
            0x8000_0009,
            0x8000_001F,
            0x8FFF_FFFF,
            0xC000_0000,
            0xFFFF_FFFF,
        ];
        using var guest = new HardwareGuest(a =>
        {
            Label next = a.CreateLabel();
            a.mov(rsi, HardwareGuest.Data);
            a.mov(rdi, HardwareGuest.Results);
            a.mov(ebp, leaves.Length);
            a.Label(ref next);
            a.mov(rax, 0x1234_5678_0000_0000);
            a.mov(ecx, __dword_ptr[rsi]);
            a.or(rax, rcx);
            a.mov(rbx, ulong.MaxValue);
            a.mov(rcx, 0x1234_5678_0000_0001); // a subleaf, which no leaf has
            a.mov(rdx, ulong.MaxValue);
            a.cpuid();
            a.mov(__qword_ptr[rdi], rax);
            a.mov(__qword_ptr[rdi + 8], rbx);
            a.mov(__qword_ptr[rdi + 16], rcx);
            a.mov(__qword_ptr[rdi + 24], rdx);
            a.add(rsi, 4);
            a.add(rdi, 32);
            a.dec(ebp);
            a.jnz(next);
            a.Exit();
        });
        for (int i = 0; i < leaves.Length; i++)
        {
            guest.Memory.Write(HardwareGuest.Data + (4 * (ulong)i), leaves[i]);
        }

        guest.RunToExit();
        var wrong = new List<string>();
        for (int i = 0; i < leaves.Length; i++)
        {
            CpuidResult expected = PlatformCpuid.Query(leaves[i]);
            ulong[] got =
            [
                guest.Result(4 * i),
                guest.Result((4 * i) + 1),
                guest.Result((4 * i) + 2),
                guest.Result((4 * i) + 3),
            ];
            ulong[] wanted = [expected.Eax, expected.Ebx, expected.Ecx, expected.Edx];
            if (!wanted.SequenceEqual(got))
            {
                wrong.Add($"leaf 0x{leaves[i]:X}: {string.Join(' ', got.Select(g => $"{g:X}"))}");
            }
        }

        Assert.Empty(wrong);
        Assert.Empty(guest.OtherExits);
    }

    // Where the features are not the platform's, this much is.
    [Fact]
    public void The_names_are_the_platforms_everywhere()
    {
        uint[] leaves = [0, PlatformCpuid.HypervisorLeaf, 0x8000_0000, 0x8000_0002, 0x8000_0003, 0x8000_0004];
        using var guest = new HardwareGuest(a =>
        {
            for (int i = 0; i < leaves.Length; i++)
            {
                a.mov(eax, leaves[i]);
                a.cpuid();
                a.Store(3 * i, rbx);
                a.Store((3 * i) + 1, rcx);
                a.Store((3 * i) + 2, rdx);
            }

            a.Exit();
        });
        guest.RunToExit();
        for (int i = 0; i < leaves.Length; i++)
        {
            CpuidResult expected = PlatformCpuid.Query(leaves[i]);
            Assert.Equal(
                (expected.Ebx, expected.Ecx, expected.Edx),
                (guest.Result(3 * i), guest.Result((3 * i) + 1), guest.Result((3 * i) + 2))
            );
        }

        Assert.Empty(guest.OtherExits);
    }

    [Fact]
    public void It_stays_the_same_in_ring_three_and_whatever_control_registers_say()
    {
        HardwareGuest.SkipWhereHole("cpuid");
        using var guest = new HardwareGuest(a =>
        {
            a.mov(eax, 1);
            a.cpuid();
            a.Store(8, rcx);
            a.Store(9, rdx);
            a.ud2();
        });
        guest.EnterInRingThree();
        guest.RunToException();
        CpuidResult expected = PlatformCpuid.Query(1);
        Assert.Equal((expected.Ecx, expected.Edx), ((uint)guest.Result(8), (uint)guest.Result(9)));
    }
}
