using System.Buffers.Binary;
using Iced.Intel;

namespace VirtBench.Tests;

/// <summary>A loadable segment of a hand-made ELF file.</summary>
internal readonly record struct GuestSegment(
    ulong Address,
    byte[] Content,
    ulong MemorySize,
    bool Executable = true,
    ulong? FileOffset = null,
    ulong? FileSize = null
);

/// <summary>Tiny ELF64 executables, written byte by byte so that a test can make each of them wrong.</summary>
internal static class GuestFile
{
    public const ulong CodeStart = 0x10_0000;
    public const int HeaderSize = 64;
    public const int ProgramHeaderSize = 56;

    /// <summary>Offsets of fields in the ELF header.</summary>
    public const int Class = 4,
        ByteOrder = 5,
        Type = 16,
        Machine = 18,
        Entry = 24,
        ProgramHeaderCount = 56;

    /// <summary>An executable of one segment with this code at <see cref="CodeStart"/>.</summary>
    public static byte[] Of(Action<Assembler> write) => Of(Assemble(write));

    public static byte[] Of(byte[] code) =>
        Of(CodeStart, new GuestSegment(CodeStart, code, Math.Max(0x1000, (ulong)code.Length)));

    public static byte[] Of(ulong entry, params GuestSegment[] segments)
    {
        int at = HeaderSize + (ProgramHeaderSize * segments.Length);
        byte[] file = new byte[at + segments.Sum(segment => segment.Content.Length)];
        "\u007fELF"u8.CopyTo(file);
        (file[Class], file[ByteOrder], file[6]) = (2, 1, 1);
        Put16(file, Type, 2);
        Put16(file, Machine, 62);
        Put64(file, Entry, entry);
        Put64(file, 32, HeaderSize);
        Put16(file, 54, ProgramHeaderSize);
        Put16(file, ProgramHeaderCount, (ushort)segments.Length);
        for (int i = 0; i < segments.Length; i++)
        {
            GuestSegment segment = segments[i];
            int header = HeaderSize + (i * ProgramHeaderSize);
            Put32(file, header, 1);
            Put32(file, header + 4, segment.Executable ? 5u : 6u);
            Put64(file, header + 8, segment.FileOffset ?? (ulong)at);
            Put64(file, header + 16, segment.Address);
            Put64(file, header + 24, segment.Address);
            Put64(file, header + 32, segment.FileSize ?? (ulong)segment.Content.Length);
            Put64(file, header + 40, segment.MemorySize);
            segment.Content.CopyTo(file, at);
            at += segment.Content.Length;
        }

        return file;
    }

    public static byte[] Assemble(Action<Assembler> write)
    {
        var assembler = new Assembler(64);
        write(assembler);
        using var code = new MemoryStream();
        assembler.Assemble(new StreamCodeWriter(code), CodeStart);
        return code.ToArray();
    }

    public static void Put16(byte[] file, int at, ushort value) =>
        BinaryPrimitives.WriteUInt16LittleEndian(file.AsSpan(at), value);

    public static void Put32(byte[] file, int at, uint value) =>
        BinaryPrimitives.WriteUInt32LittleEndian(file.AsSpan(at), value);

    public static void Put64(byte[] file, int at, ulong value) =>
        BinaryPrimitives.WriteUInt64LittleEndian(file.AsSpan(at), value);
}
