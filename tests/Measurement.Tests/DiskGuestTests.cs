using System.Security.Cryptography;
using Iced.Intel;
using VirtBench.Vmm.Boot;
using VirtBench.Vmm.Disks;
using VirtBench.Vmm.Execution;
using static Iced.Intel.AssemblerRegisters;

namespace VirtBench.Measurement.Tests;

/// <summary>Guests that use their disk, under every strategy that runs here: what they read and write, and code and page tables from it.</summary>
public sealed class DiskGuestTests
{
    private const uint Code = 0x10_0000;
    private const uint Queue = 0x20_0000;
    private const uint Available = Queue + 0x1000;
    private const uint Used = Queue + 0x2000;
    private const uint Header = Queue + 0x3000;
    private const uint StatusByte = Queue + 0x3010;
    private const uint Directory = Queue + 0x4000;
    private const uint Data = 0x22_0000;
    private const uint Registers = 0xD000_0000;

    // Slow enough that the guest is back in its polling loop by then.
    private static readonly DiskTiming Slow = new() { MeanNanoseconds = 200_000 };

    public static TheoryData<string> Strategies() => [.. StrategiesUnderTest.Privileged];

    private static GuestRunResult Run(string id, Action<Assembler> write, GuestDisk disk)
    {
        var a = new Assembler(64);
        write(a);
        using var code = new MemoryStream();
        a.Assemble(new StreamCodeWriter(code), Code);
        byte[] content = code.ToArray();
        return GuestRun.Execute(
            StrategiesUnderTest.Get(id),
            new GuestImage("test", Code, [new ImageSegment(Code, content, (ulong)content.Length, true)]),
            new GuestRunOptions { Disk = disk, Timeout = TimeSpan.FromSeconds(60) },
            cancellation: TestContext.Current.CancellationToken
        );
    }

    private static string CreateFile(byte[] content)
    {
        string path = Path.GetTempFileName();
        File.WriteAllBytes(path, content);
        return path;
    }

    private static void Exit(Assembler a, byte status)
    {
        a.mov(al, status);
        a.@out(0xF4, al);
    }

    // The device's addresses lie above what is mapped at boot: one page of 2 MiB more.
    private static void MapRegisters(Assembler a)
    {
        a.mov(rax, cr3);
        a.mov(rax, __[rax]);
        a.and(rax, -4096);
        a.mov(ecx, Directory | 3);
        a.mov(__[rax + (8 * 3)], rcx);
        a.mov(ecx, Registers | 0x83);
        a.mov(__[Directory + ((Registers - 0xC000_0000) >> 21 << 3)], rcx);
        a.mov(rax, cr3);
        a.mov(cr3, rax);
    }

    private static void SetRegister(Assembler a, int register, uint value) =>
        a.mov(__dword_ptr[rbx + register], (int)value);

    // A queue of one chain of three descriptors, polled: the driver wants no interrupts. RBX holds the registers' address from here on.
    private static void StartVirtio(Assembler a, int sectors)
    {
        MapRegisters(a);
        a.mov(ebx, Registers);
        SetRegister(a, 0x70, 1);
        SetRegister(a, 0x70, 3);
        SetRegister(a, 0x24, 1);
        SetRegister(a, 0x20, 1); // VERSION_1
        SetRegister(a, 0x70, 11);
        SetRegister(a, 0x38, 4);
        SetRegister(a, 0x80, Queue);
        SetRegister(a, 0x90, Available);
        SetRegister(a, 0xA0, Used);
        SetRegister(a, 0x44, 1);
        SetRegister(a, 0x70, 15);
        foreach (
            (uint at, uint address, uint length, uint flags, uint next) in ((uint, uint, uint, uint, uint)[])
                [
                    (Queue, Header, 16, 1, 1),
                    (Queue + 16, Data, (uint)sectors * 512, 3, 2),
                    (Queue + 32, StatusByte, 1, 2, 0),
                ]
        )
        {
            a.mov(rax, address);
            a.mov(__[at], rax);
            a.mov(rax, length | ((ulong)flags << 32) | ((ulong)next << 48));
            a.mov(__[at + 8], rax);
        }

        a.mov(__word_ptr[Available], 1); // NO_INTERRUPT
        a.xor(r12d, r12d); // requests so far
    }

    // Reads from the sector in RAX to Data and waits without an exit; the carry flag is set when the status is not 0.
    private static void ReadAndPoll(Assembler a)
    {
        Label wait = a.CreateLabel();
        a.mov(__[Header + 8], rax);
        a.mov(__byte_ptr[StatusByte], 0xEE);
        a.inc(r12d);
        a.mov(__word_ptr[Available + 2], r12w);
        a.mov(__dword_ptr[rbx + 0x50], 0);
        a.Label(ref wait);
        a.pause();
        a.cmp(__word_ptr[Used + 2], r12w);
        a.jne(wait);
        a.cmp(__byte_ptr[StatusByte], 1);
        a.cmc();
    }

    [Theory]
    [MemberData(nameof(Strategies))]
    public void Code_that_the_disk_has_read_over_other_code_is_what_runs(string id)
    {
        const int times = 200;
        byte[] disk = new byte[times * 512];
        for (int i = 0; i < times; i++)
        {
            disk[i * 512] = 0xB8; // mov eax, i; ret
            BitConverter.TryWriteBytes(disk.AsSpan((i * 512) + 1), i);
            disk[(i * 512) + 5] = 0xC3;
        }

        string path = CreateFile(disk);
        try
        {
            GuestRunResult result = Run(
                id,
                a =>
                {
                    Label next = a.CreateLabel();
                    Label bad = a.CreateLabel();
                    Label refused = a.CreateLabel();
                    StartVirtio(a, 1);
                    a.xor(r13d, r13d);
                    a.Label(ref next);
                    a.mov(rax, r13);
                    ReadAndPoll(a);
                    a.jc(refused);
                    a.mov(ecx, Data);
                    a.call(rcx);
                    a.call(rcx);
                    a.cmp(eax, r13d);
                    a.jne(bad);
                    a.inc(r13d);
                    a.cmp(r13d, times);
                    a.jne(next);
                    Exit(a, 0);
                    a.Label(ref bad);
                    Exit(a, 1);
                    a.Label(ref refused);
                    Exit(a, 2);
                },
                new GuestDisk
                {
                    Path = path,
                    IsReadOnly = true,
                    Timing = Slow,
                }
            );
            Assert.Equal(
                (RunEnd.Exited, (byte)0, null),
                (result.Outcome.End, result.Outcome.Status, result.Outcome.Message)
            );
            Assert.Equal(times, result.Disk!.Completions);
            Assert.Equal(times * 512, result.Disk.BytesRead);
            Assert.Equal(0, result.Disk.Interrupts);
        }
        finally
        {
            File.Delete(path);
        }
    }

    [Theory]
    [MemberData(nameof(Strategies))]
    public void A_page_table_that_the_disk_has_read_is_what_translates(string id)
    {
        const int times = 200;
        const int sectors = 8;
        const uint frames = 0x30_0000; // frame i holds the number i
        byte[] disk = new byte[4 * sectors * 512];
        for (int table = 0; table < 4; table++)
        {
            for (int entry = 0; entry < 512; entry++)
            {
                ulong frame = frames + (4096UL * (ulong)((entry + table) % 8));
                BitConverter.TryWriteBytes(disk.AsSpan((table * sectors * 512) + (entry * 8)), frame | 3);
            }
        }

        string path = CreateFile(disk);
        try
        {
            GuestRunResult result = Run(
                id,
                a =>
                {
                    Label fill = a.CreateLabel();
                    Label next = a.CreateLabel();
                    Label bad = a.CreateLabel();
                    Label refused = a.CreateLabel();
                    StartVirtio(a, sectors);
                    a.xor(ecx, ecx);
                    a.mov(edx, frames);
                    a.Label(ref fill);
                    a.mov(__[rdx], rcx);
                    a.add(edx, 4096);
                    a.inc(ecx);
                    a.cmp(ecx, 8);
                    a.jne(fill);

                    // The page directory's entry for 16 MiB is the table that the disk reads.
                    a.xor(eax, eax);
                    ReadAndPoll(a);
                    a.jc(refused);
                    a.mov(rax, cr3);
                    a.mov(rax, __[rax]);
                    a.and(rax, -4096);
                    a.mov(rax, __[rax]);
                    a.and(rax, -4096);
                    a.mov(__qword_ptr[rax + (8 * 8)], (int)(Data | 3));
                    a.mov(rax, cr3);
                    a.mov(cr3, rax);

                    a.xor(r13d, r13d);
                    a.Label(ref next);
                    a.mov(eax, r13d);
                    a.and(eax, 3);
                    a.shl(eax, 3);
                    ReadAndPoll(a);
                    a.jc(refused);
                    a.mov(ecx, 0x100_0000);
                    a.invlpg(__[rcx]);
                    a.mov(eax, __dword_ptr[rcx]);
                    a.mov(edx, r13d);
                    a.and(edx, 3);
                    a.cmp(eax, edx);
                    a.jne(bad);
                    a.inc(r13d);
                    a.cmp(r13d, times);
                    a.jne(next);
                    Exit(a, 0);
                    a.Label(ref bad);
                    Exit(a, 1);
                    a.Label(ref refused);
                    Exit(a, 2);
                },
                new GuestDisk
                {
                    Path = path,
                    IsReadOnly = true,
                    Timing = Slow,
                }
            );
            Assert.Equal(
                (RunEnd.Exited, (byte)0, null),
                (result.Outcome.End, result.Outcome.Status, result.Outcome.Message)
            );
            Assert.Equal(times + 1, result.Disk!.Completions);
        }
        finally
        {
            File.Delete(path);
        }
    }

    [Theory]
    [MemberData(nameof(Strategies))]
    public void What_a_guest_writes_by_ATA_is_in_the_file_and_read_back(string id)
    {
        const int sectors = 16;
        byte[] disk = new byte[64 * 512];
        new Random(4).NextBytes(disk);
        string path = CreateFile(disk);
        try
        {
            GuestRunResult result = Run(
                id,
                a =>
                {
                    Label bad = a.CreateLabel();
                    a.cld();

                    // The first sectors, copied to sector 40, and that again to memory.
                    Command(a, 0x20, 0, sectors);
                    a.mov(edi, Data);
                    Transfer(a, sectors, bad, writes: false);
                    Command(a, 0x30, 40, sectors);
                    a.mov(esi, Data);
                    Transfer(a, sectors, bad, writes: true);
                    Command(a, 0x20, 40, sectors);
                    a.mov(edi, Data + 0x1_0000);
                    Transfer(a, sectors, bad, writes: false);
                    a.mov(esi, Data);
                    a.mov(edi, Data + 0x1_0000);
                    a.mov(ecx, sectors * 128);
                    a.repe.cmpsd();
                    a.jne(bad);
                    a.mov(edx, 0x1F7);
                    a.mov(al, 0xE7);
                    a.@out(dx, al);
                    WaitWhileBusy(a);
                    Exit(a, 0);
                    a.Label(ref bad);
                    Exit(a, 1);
                },
                new GuestDisk
                {
                    Path = path,
                    Timing = new DiskTiming { MeanNanoseconds = 1000 },
                }
            );
            Assert.Equal(
                (RunEnd.Exited, (byte)0, null),
                (result.Outcome.End, result.Outcome.Status, result.Outcome.Message)
            );
            Assert.Equal((4, 0, 1), (result.Disk!.Completions, result.Disk.Errors, result.Disk.Flushes));
            Assert.Equal(2 * sectors * 512, result.Disk.BytesRead);
            byte[] file = File.ReadAllBytes(path);
            Assert.Equal(
                SHA256.HashData(disk.AsSpan(0, sectors * 512)),
                SHA256.HashData(file.AsSpan(40 * 512, sectors * 512))
            );
            Assert.Equal(disk[..(40 * 512)], file[..(40 * 512)]);
        }
        finally
        {
            File.Delete(path);
        }
    }

    private static void Command(Assembler a, byte command, byte sector, byte sectors)
    {
        byte[] values = [sectors, sector, 0, 0, 0xE0, command];
        for (int i = 0; i < values.Length; i++)
        {
            a.mov(edx, 0x1F2 + i);
            a.mov(al, values[i]);
            a.@out(dx, al);
        }
    }

    private static void WaitWhileBusy(Assembler a)
    {
        Label busy = a.CreateLabel();
        a.mov(edx, 0x1F7);
        a.Label(ref busy);
        a.@in(al, dx);
        a.test(al, 0x80);
        a.jnz(busy);
    }

    // Sector by sector; RSI or RDI goes on.
    private static void Transfer(Assembler a, int sectors, Label bad, bool writes)
    {
        Label next = a.CreateLabel();
        a.mov(r8d, sectors);
        a.Label(ref next);
        WaitWhileBusy(a);
        a.and(al, 0x09);
        a.cmp(al, 0x08); // DRQ and no error
        a.jne(bad);
        a.mov(edx, 0x1F0);
        a.mov(ecx, 256);
        if (writes)
        {
            a.rep.outsw();
        }
        else
        {
            a.rep.insw();
        }

        a.dec(r8d);
        a.jnz(next);
        WaitWhileBusy(a);
    }
}
