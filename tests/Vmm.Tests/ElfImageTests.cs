using System.Buffers.Binary;
using VirtBench.Vmm.Boot;

namespace VirtBench.Vmm.Tests;

/// <summary>A small good ELF file, and each way it can be bad.</summary>
public sealed class ElfImageTests
{
    private const int ProgramHeaders = 64;
    private const int Content = 64 + (2 * 56);

    // Two segments: code of 4 bytes at 1 MiB, and data of 2 bytes with 0x100 of memory above it.
    private static byte[] Good()
    {
        byte[] file = new byte[Content + 6];
        "\u007fELF"u8.CopyTo(file);
        (file[4], file[5], file[6]) = (2, 1, 1);
        Put16(file, 16, 2);
        Put16(file, 18, 62);
        Put64(file, 24, 0x10_0000);
        Put64(file, 32, ProgramHeaders);
        Put16(file, 54, 56);
        Put16(file, 56, 2);
        Segment(file, 0, 5, Content, 0x10_0000, 4, 4);
        Segment(file, 1, 6, Content + 4, 0x10_1000, 2, 0x100);
        new byte[] { 1, 2, 3, 4, 5, 6 }.CopyTo(file, Content);
        return file;
    }

    private static void Segment(
        byte[] file,
        int index,
        int flags,
        ulong offset,
        ulong address,
        ulong size,
        ulong memory
    )
    {
        int at = ProgramHeaders + (index * 56);
        Put32(file, at, 1);
        Put32(file, at + 4, (uint)flags);
        Put64(file, at + 8, offset);
        Put64(file, at + 16, address);
        Put64(file, at + 24, address);
        Put64(file, at + 32, size);
        Put64(file, at + 40, memory);
    }

    private static void Put16(byte[] file, int at, ushort value) =>
        BinaryPrimitives.WriteUInt16LittleEndian(file.AsSpan(at), value);

    private static void Put32(byte[] file, int at, uint value) =>
        BinaryPrimitives.WriteUInt32LittleEndian(file.AsSpan(at), value);

    private static void Put64(byte[] file, int at, ulong value) =>
        BinaryPrimitives.WriteUInt64LittleEndian(file.AsSpan(at), value);

    [Fact]
    public void A_static_executable_is_read()
    {
        GuestImage image = ElfImage.Parse(Good(), "good.elf");
        Assert.Equal(0x10_0000UL, image.Entry);
        Assert.Equal(2, image.Segments.Count);
        Assert.Equal([1, 2, 3, 4], image.Segments[0].Content.ToArray());
        Assert.True(image.Segments[0].Executable);
        Assert.Equal((0x10_1000UL, 0x100UL), (image.Segments[1].PhysicalAddress, image.Segments[1].MemorySize));
        Assert.False(image.Segments[1].Executable);
    }

    public static TheoryData<string, string> BadFiles =>
        new()
        {
            { "empty", "is not an ELF file" },
            { "magic", "is not an ELF file" },
            { "class", "32-bit" },
            { "class 7", "unknown ELF class" },
            { "order", "big-endian" },
            { "header cut", "truncated" },
            { "machine", "another machine (e_machine 183" },
            { "shared", "-no-pie" },
            { "relocatable", "is not an executable (e_type 1)" },
            { "interpreter", "dynamically linked" },
            { "no headers", "no program headers" },
            { "header size", "program headers of 32 bytes" },
            { "headers beyond", "program headers lie beyond" },
            { "headers far beyond", "program headers lie beyond" },
            { "many headers", "program headers lie beyond" },
            { "content cut", "lies beyond the end of the file" },
            { "offset overflow", "lies beyond the end of the file" },
            { "size overflow", "more bytes in the file" },
            { "absurd size", "a guest has at most" },
            { "overlap", "overlaps" },
            { "address overflow", "beyond the address space" },
            { "nothing loaded", "nothing to load" },
            { "entry", "no executable segment" },
            { "entry in data", "no executable segment" },
        };

    [Theory]
    [MemberData(nameof(BadFiles))]
    public void A_bad_file_gives_one_clear_line(string what, string message)
    {
        byte[] file = Good();
        int first = ProgramHeaders;
        switch (what)
        {
            case "empty":
                file = [];
                break;
            case "magic":
                file[0] = (byte)'#';
                break;
            case "class":
                file[4] = 1;
                break;
            case "class 7":
                file[4] = 7;
                break;
            case "order":
                file[5] = 2;
                break;
            case "header cut":
                file = file[..63];
                break;
            case "machine":
                Put16(file, 18, 183);
                break;
            case "shared":
                Put16(file, 16, 3);
                break;
            case "relocatable":
                Put16(file, 16, 1);
                break;
            case "interpreter":
                Put32(file, first + 56, 3);
                break;
            case "no headers":
                Put16(file, 56, 0);
                break;
            case "header size":
                Put16(file, 54, 32);
                break;
            case "headers beyond":
                file = file[..(Content - 1)];
                break;
            case "headers far beyond":
                Put64(file, 32, ulong.MaxValue - 8);
                break;
            case "many headers":
                Put16(file, 56, ushort.MaxValue);
                break;
            case "content cut":
                file = file[..^1];
                break;
            case "offset overflow":
                Put64(file, first + 8, ulong.MaxValue - 1);
                break;
            case "size overflow":
                Put64(file, first + 32, ulong.MaxValue);
                break;
            case "absurd size":
                Put64(file, first + 40, 1UL << 62);
                break;
            case "overlap":
                Put64(file, first + 56 + 24, 0x10_0002);
                break;
            case "address overflow":
                Put64(file, first + 56 + 24, ulong.MaxValue - 16);
                break;
            case "nothing loaded":
                Put32(file, first, 4);
                Put32(file, first + 56, 4);
                break;
            case "entry":
                Put64(file, 24, 0x10_0004);
                break;
            case "entry in data":
                Put64(file, 24, 0x10_1000);
                break;
            default:
                Assert.Fail(what);
                break;
        }

        GuestImageException e = Assert.Throws<GuestImageException>(() => ElfImage.Parse(file, "bad.elf"));
        Assert.Contains(message, e.Message, StringComparison.Ordinal);
        Assert.StartsWith("bad.elf", e.Message, StringComparison.Ordinal);
        Assert.DoesNotContain('\n', e.Message);
    }

    [Fact]
    public void Any_header_bytes_are_read_or_refused_but_never_break_the_reader()
    {
        Random random = new(20260101);
        for (int round = 0; round < 20_000; round++)
        {
            byte[] file = Good();
            for (int change = random.Next(1, 6); change > 0; change--)
            {
                file[random.Next(4, Content)] = (byte)random.Next(256);
            }

            try
            {
                GuestImage image = ElfImage.Parse(file.AsSpan(0, random.Next(file.Length + 1)), "fuzz");
                Assert.NotEmpty(image.Segments);
            }
            catch (GuestImageException e)
            {
                Assert.DoesNotContain('\n', e.Message);
            }
        }
    }

    [Fact]
    public void A_file_that_is_missing_empty_or_a_directory_gives_one_clear_line()
    {
        string folder = Directory.CreateTempSubdirectory("virtbench").FullName;
        try
        {
            string path = Path.Combine(folder, "guest.elf");
            GuestImageException e = Assert.Throws<GuestImageException>(() => ElfImage.Load(path));
            Assert.Equal($"{path} does not exist", e.Message);
            e = Assert.Throws<GuestImageException>(() => ElfImage.Load(folder));
            Assert.Contains("directory", e.Message, StringComparison.Ordinal);
            File.WriteAllBytes(path, []);
            e = Assert.Throws<GuestImageException>(() => ElfImage.Load(path));
            Assert.Contains("empty", e.Message, StringComparison.Ordinal);
            File.WriteAllBytes(path, Good());
            Assert.Equal("guest.elf", ElfImage.Load(path).Name);
        }
        finally
        {
            Directory.Delete(folder, recursive: true);
        }
    }
}
