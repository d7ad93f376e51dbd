using System.Buffers.Binary;
using VirtBench.Vmm.Memory;

namespace VirtBench.Vmm.Boot;

/// <summary>
/// Reads a static ELF64 executable for x86-64 (System V ABI, generic part, chapters 4 and 5, and its AMD64 supplement). The
/// file is hostile input: every number in it is checked before it is used.
/// </summary>
public static class ElfImage
{
    /// <summary>Largest file that is read, in bytes: 1 GiB, all that the boot page tables map.</summary>
    public const long MaximumFileSize = 1L << 30;

    private const int HeaderSize = 64;
    private const int ProgramHeaderSize = 56;
    private const ushort TypeExecutable = 2;
    private const ushort TypeSharedObject = 3;
    private const ushort MachineX8664 = 62;
    private const uint SegmentLoad = 1;
    private const uint SegmentInterpreter = 3;
    private const uint FlagExecute = 1;

    /// <summary>Reads a file.</summary>
    /// <exception cref="GuestImageException">It is missing, unreadable, or not such an executable.</exception>
    public static GuestImage Load(string path)
    {
        string name = Path.GetFileName(path);
        try
        {
            if (Directory.Exists(path))
            {
                throw new GuestImageException($"{path} is a directory, not an ELF file");
            }

            // Asked before opening: opening a pipe would wait for a writer. Pipes and devices have length 0.
            long length = new FileInfo(path).Length;
            if (length is 0 or > MaximumFileSize)
            {
                throw new GuestImageException(
                    length == 0
                        ? $"{path} is empty or not a regular file"
                        : $"{path} has {length} bytes; at most {MaximumFileSize} are read"
                );
            }

            return Parse(File.ReadAllBytes(path), name);
        }
        catch (Exception e) when (e is FileNotFoundException or DirectoryNotFoundException)
        {
            throw new GuestImageException($"{path} does not exist");
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException or ArgumentException)
        {
            throw new GuestImageException($"{path} cannot be read: {e.Message}");
        }
    }

    /// <summary>Reads the bytes of a file.</summary>
    /// <param name="file">All of the file.</param>
    /// <param name="name">For messages.</param>
    /// <exception cref="GuestImageException">They are not such an executable.</exception>
    public static GuestImage Parse(ReadOnlySpan<byte> file, string name)
    {
        CheckIdentification(file, name);
        ushort type = U16(file, 16);
        ushort machine = U16(file, 18);
        if (machine != MachineX8664)
        {
            throw new GuestImageException(
                $"{name} is for another machine (e_machine {machine}, x86-64 is {MachineX8664})"
            );
        }

        ulong entry = U64(file, 24);
        ulong tableOffset = U64(file, 32);
        ushort entrySize = U16(file, 54);
        ushort entries = U16(file, 56);
        if (type == TypeSharedObject)
        {
            throw new GuestImageException(
                $"{name} is position-independent or a shared object: link a static executable (-static -no-pie)"
            );
        }

        if (type != TypeExecutable)
        {
            throw new GuestImageException($"{name} is not an executable (e_type {type})");
        }

        if (entries == 0)
        {
            throw new GuestImageException($"{name} has no program headers");
        }

        if (entrySize != ProgramHeaderSize)
        {
            throw new GuestImageException(
                $"{name} has program headers of {entrySize} bytes; ELF64 has {ProgramHeaderSize}"
            );
        }

        if (!Within(file, tableOffset, (ulong)entries * ProgramHeaderSize))
        {
            throw new GuestImageException($"{name} is truncated: its program headers lie beyond its end");
        }

        List<ImageSegment> segments = [];
        ulong loaded = 0;
        for (int i = 0; i < entries; i++)
        {
            ReadOnlySpan<byte> header = file.Slice((int)tableOffset + (i * ProgramHeaderSize), ProgramHeaderSize);
            switch (U32(header, 0))
            {
                case SegmentInterpreter:
                    throw new GuestImageException(
                        $"{name} is dynamically linked: link a static executable (-static -no-pie)"
                    );
                case SegmentLoad when U64(header, 40) > 0:
                    segments.Add(ReadSegment(file, header, name, ref loaded));
                    break;
            }
        }

        GuestImage image = new(name, entry, segments);
        image.CheckSegments();
        return image;
    }

    private static void CheckIdentification(ReadOnlySpan<byte> file, string name)
    {
        if (file.Length < 4 || !file[..4].SequenceEqual("\u007fELF"u8))
        {
            throw new GuestImageException($"{name} is not an ELF file");
        }

        if (file.Length > 4 && file[4] != 2)
        {
            throw new GuestImageException(
                file[4] == 1 ? $"{name} is a 32-bit ELF file; guests are 64-bit" : $"{name} has an unknown ELF class"
            );
        }

        if (file.Length > 5 && file[5] != 1)
        {
            throw new GuestImageException($"{name} is big-endian; x86-64 is little-endian");
        }

        if (file.Length < HeaderSize)
        {
            throw new GuestImageException(
                $"{name} is truncated: {file.Length} bytes, the ELF header alone has {HeaderSize}"
            );
        }
    }

    private static ImageSegment ReadSegment(
        ReadOnlySpan<byte> file,
        ReadOnlySpan<byte> header,
        string name,
        ref ulong loaded
    )
    {
        uint flags = U32(header, 4);
        ulong offset = U64(header, 8);
        ulong physical = U64(header, 24);
        ulong fileSize = U64(header, 32);
        ulong memorySize = U64(header, 40);
        if (fileSize > memorySize)
        {
            throw new GuestImageException(
                $"{name}: the segment at 0x{physical:X} has more bytes in the file (0x{fileSize:X}) than in memory "
                    + $"(0x{memorySize:X})"
            );
        }

        if (memorySize > GuestMemory.MaximumSize)
        {
            throw new GuestImageException(
                $"{name}: the segment at 0x{physical:X} wants 0x{memorySize:X} bytes; a guest has at most "
                    + $"0x{GuestMemory.MaximumSize:X}"
            );
        }

        if (!Within(file, offset, fileSize))
        {
            throw new GuestImageException(
                $"{name} is truncated: the segment at 0x{physical:X} lies beyond the end of the file"
            );
        }

        // Many segments may name the same bytes of the file: bound what they copy together.
        loaded += fileSize;
        if (loaded > MaximumFileSize)
        {
            throw new GuestImageException($"{name}: its segments load more than {MaximumFileSize} bytes together");
        }

        return new ImageSegment(
            physical,
            file.Slice((int)offset, (int)fileSize).ToArray(),
            memorySize,
            (flags & FlagExecute) != 0
        );
    }

    // A zero-length range may begin anywhere up to the end.
    private static bool Within(ReadOnlySpan<byte> file, ulong offset, ulong length) =>
        offset <= (ulong)file.Length && length <= (ulong)file.Length - offset;

    private static ushort U16(ReadOnlySpan<byte> bytes, int at) => BinaryPrimitives.ReadUInt16LittleEndian(bytes[at..]);

    private static uint U32(ReadOnlySpan<byte> bytes, int at) => BinaryPrimitives.ReadUInt32LittleEndian(bytes[at..]);

    private static ulong U64(ReadOnlySpan<byte> bytes, int at) => BinaryPrimitives.ReadUInt64LittleEndian(bytes[at..]);
}
