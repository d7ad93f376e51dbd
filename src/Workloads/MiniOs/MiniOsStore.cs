using System.Buffers.Binary;
using VirtBench.Vmm.Disks;

namespace VirtBench.Workloads;

/// <summary>
/// What mini-os has on its disk: the program that its processes run and its constants, which the kernel reads when it starts, and a sector for the
/// result of each process, which it writes at the end. Numbers are little endian, 8 bytes each.
/// <code>
/// sector 0       magic, sector and bytes of the program, sector and bytes of the constants, sector of the results
/// from sector 8  the program, in blocks of 4 KiB; behind it the constants, a block; behind them the results
/// a result       magic, process (from 1; 0 for all of them together), checksum, rounds
/// </code>
/// </summary>
public static class MiniOsStore
{
    /// <summary>"VBSTORE1" as a little-endian number: a disk that has programs.</summary>
    public const ulong Magic = 0x3145_524F_5453_4256;

    /// <summary>"VBRESULT": a result.</summary>
    public const ulong ResultMagic = 0x544C_5553_4552_4256;

    /// <summary>Bytes of a result that count.</summary>
    public const int ResultBytes = 32;

    internal const int ProgramSector = 0x08;
    internal const int ProgramBytes = 0x10;
    internal const int ConstantsSector = 0x18;
    internal const int ConstantsBytes = 0x20;
    internal const int ResultsSector = 0x28;

    internal const int ResultProcess = 0x08;
    internal const int ResultChecksum = 0x10;
    internal const int ResultRounds = 0x18;

    private const ulong Capacity = 1 << 20;

    /// <summary>A disk without service time that holds the store.</summary>
    internal static DiskRequirement Requirement { get; } = new(Capacity, Seed: 1);

    /// <summary>Where the results lie on a disk that holds these bytes, in bytes.</summary>
    public static int ResultsOffset(ReadOnlySpan<byte> disk) =>
        (int)BinaryPrimitives.ReadUInt64LittleEndian(disk[ResultsSector..]) * IBlockStorage.SectorSize;

    /// <summary>The disk's first bytes.</summary>
    internal static byte[] Content(ReadOnlySpan<byte> program, ReadOnlySpan<byte> constants)
    {
        int programBlocks = (program.Length + DiskBlock.Bytes - 1) / DiskBlock.Bytes;
        int constantsAt = (1 + programBlocks) * DiskBlock.Bytes;
        byte[] disk = new byte[constantsAt + DiskBlock.Bytes];
        Write(disk, 0, Magic);
        Write(disk, ProgramSector, DiskBlock.Sectors);
        Write(disk, ProgramBytes, (ulong)program.Length);
        Write(disk, ConstantsSector, (ulong)(constantsAt / IBlockStorage.SectorSize));
        Write(disk, ConstantsBytes, (ulong)constants.Length);
        Write(disk, ResultsSector, (ulong)(disk.Length / IBlockStorage.SectorSize));
        program.CopyTo(disk.AsSpan(DiskBlock.Bytes));
        constants.CopyTo(disk.AsSpan(constantsAt));
        return disk;
    }

    private static void Write(byte[] disk, int offset, ulong value) =>
        BinaryPrimitives.WriteUInt64LittleEndian(disk.AsSpan(offset), value);
}
