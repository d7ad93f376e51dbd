using System.Runtime.InteropServices;
using System.Security.Cryptography;
using VirtBench.Vmm.Disks;

namespace VirtBench.Vmm.Tests.Disks;

/// <summary>What holds a disk's sectors, and what is said of files that cannot.</summary>
public sealed partial class StorageTests : IDisposable
{
    private readonly DirectoryInfo _folder = Directory.CreateTempSubdirectory("virtbench-disk");

    private string Disk => Path.Combine(_folder.FullName, "disk");

    public void Dispose() => _folder.Delete(recursive: true);

    [LibraryImport("libc", EntryPoint = "truncate", StringMarshalling = StringMarshalling.Utf8)]
    private static partial int Truncate(string path, long length);

    [LibraryImport("libc", EntryPoint = "geteuid")]
    private static partial uint EffectiveUser();

    private static byte[] Read(IBlockStorage disk, ulong sector, int sectors)
    {
        byte[] bytes = new byte[sectors * 512];
        disk.Read(sector, bytes);
        return bytes;
    }

    [Fact]
    public void Written_data_is_in_the_file_when_it_is_opened_again()
    {
        File.WriteAllBytes(Disk, new byte[64 * 512]);
        byte[] data = DiskMachine.Pattern(60 * 512, 1);
        using (var disk = new FileStorage(Disk, readOnly: false))
        {
            disk.Write(3, data);
            disk.Flush();
        }

        using var again = new FileStorage(Disk, readOnly: true);
        Assert.Equal(SHA256.HashData(data), SHA256.HashData(Read(again, 3, 60)));
        Assert.Equal(new byte[3 * 512], Read(again, 0, 3));
        Assert.Equal(64 * 512, new FileInfo(Disk).Length);
    }

    [Theory]
    [InlineData(512, 1)]
    [InlineData(1023, 1)]
    [InlineData(1024, 2)]
    public void The_size_is_rounded_down_to_whole_sectors(int bytes, ulong sectors)
    {
        File.WriteAllBytes(Disk, new byte[bytes]);
        using var disk = new FileStorage(Disk, readOnly: true);
        Assert.Equal(sectors, disk.Sectors);
    }

    private string Refusal(string path, bool readOnly = false)
    {
        string message = Assert.Throws<DiskUnavailableException>(() => new FileStorage(path, readOnly)).Message;
        Assert.DoesNotContain('\n', message);
        Assert.Contains(path, message, StringComparison.Ordinal);
        return message;
    }

    [Fact]
    public void A_file_that_cannot_be_a_disk_is_refused_with_the_reason()
    {
        Assert.Contains("does not exist", Refusal(Disk), StringComparison.Ordinal);
        Assert.Contains("does not exist", Refusal(Path.Combine(Disk, "deeper")), StringComparison.Ordinal);
        Assert.Contains("is a directory", Refusal(_folder.FullName), StringComparison.Ordinal);
        File.WriteAllBytes(Disk, new byte[511]);
        Assert.Contains("is empty or not a regular file", Refusal(Disk), StringComparison.Ordinal);
    }

    [Fact]
    public void A_file_without_permission_is_refused_with_what_to_do()
    {
        if (!OperatingSystem.IsLinux())
        {
            Assert.Skip("permissions are Linux's here");
            return;
        }

        Assert.SkipWhen(EffectiveUser() == 0, "root may read and write everything");
        File.WriteAllBytes(Disk, new byte[512]);
        File.SetUnixFileMode(Disk, UnixFileMode.UserRead);
        Assert.Contains("read-only", Refusal(Disk), StringComparison.Ordinal);
        new FileStorage(Disk, readOnly: true).Dispose();
        File.SetUnixFileMode(Disk, UnixFileMode.None);
        Assert.Contains("cannot be read: permission denied", Refusal(Disk, readOnly: true), StringComparison.Ordinal);
    }

    [Fact]
    public void A_disk_that_is_written_is_not_opened_twice()
    {
        File.WriteAllBytes(Disk, new byte[512]);
        using var disk = new FileStorage(Disk, readOnly: false);
        Assert.Contains("cannot be opened", Refusal(Disk), StringComparison.Ordinal);
    }

    [Fact]
    public void A_file_that_becomes_shorter_gives_errors_and_keeps_what_it_has()
    {
        Assert.SkipUnless(OperatingSystem.IsLinux(), "a file in use is shortened by truncate(2)");
        File.WriteAllBytes(Disk, DiskMachine.Pattern(16 * 512, 2));
        using var disk = new FileStorage(Disk, readOnly: false);
        disk.Write(0, DiskMachine.Pattern(512, 3));
        Assert.Equal(0, Truncate(Disk, 8 * 512));

        DiskErrorException read = Assert.Throws<DiskErrorException>(() => Read(disk, 6, 4));
        Assert.Contains("shorter", read.Message, StringComparison.Ordinal);
        Assert.Equal(8u, read.Sector);
        DiskErrorException write = Assert.Throws<DiskErrorException>(() => disk.Write(7, new byte[1024]));
        Assert.Equal(8u, write.Sector);
        Assert.Equal(8 * 512, new FileInfo(Disk).Length);
        Assert.Equal(DiskMachine.Pattern(512, 3), Read(disk, 0, 1));
        Assert.Equal(DiskMachine.Pattern(16 * 512, 2)[(7 * 512)..(8 * 512)], Read(disk, 7, 1));
    }

    [Fact]
    public void What_the_host_does_not_let_write_is_an_error()
    {
        File.WriteAllBytes(Disk, new byte[1024]);
        using var disk = new FileStorage(Disk, readOnly: true);
        Assert.Contains(
            "cannot be written",
            Assert.Throws<DiskErrorException>(() => disk.Write(0, new byte[512])).Message,
            StringComparison.Ordinal
        );
    }

    [Fact]
    public void A_disk_in_memory_has_the_content_of_its_seed_on_every_host()
    {
        using var disk = new RamStorage(2 << 20, seed: 7);
        byte[] across = Read(disk, 2046, 4); // over the border of two chunks
        for (int i = 0; i < across.Length / 8; i++)
        {
            Assert.Equal(RamStorage.Content(7, (2046 * 64) + (ulong)i), BitConverter.ToUInt64(across.AsSpan(8 * i)));
        }

        Assert.Equal(0x63CB_E1E4_5932_0DD7UL, RamStorage.Content(7, 0)); // SplitMix64 of seed 7
        using var zeros = new RamStorage(1 << 20);
        Assert.Equal(new byte[1024], Read(zeros, 2046, 2));
        disk.Write(2047, DiskMachine.Pattern(1024, 4));
        Assert.Equal(DiskMachine.Pattern(1024, 4), Read(disk, 2047, 2));
        Assert.Equal(across[..512], Read(disk, 2046, 1));
    }

    [Fact]
    public void Jitter_is_uniform_around_the_mean_and_the_same_for_the_same_seed()
    {
        var timing = new DiskTiming
        {
            MeanNanoseconds = 1000,
            Jitter = 0.25,
            Seed = 3,
        };
        double[] times = [.. Enumerable.Range(0, 10_000).Select(i => timing.ServiceNanoseconds((ulong)i))];
        Assert.All(times, time => Assert.InRange(time, 750, 1250));
        Assert.InRange(times.Average(), 990, 1010);
        Assert.InRange(times.Min(), 750, 752);
        Assert.InRange(times.Max(), 1248, 1250);
        Assert.Equal(times[17], (timing with { QueueDepth = 1 }).ServiceNanoseconds(17));
        Assert.NotEqual(times[17], (timing with { Seed = 4 }).ServiceNanoseconds(17));
        Assert.Equal(1000, (timing with { Jitter = 0 }).ServiceNanoseconds(17));
    }

    [Fact]
    public void Impossible_timings_are_refused()
    {
        using var storage = new RamStorage(1 << 20);
        foreach (
            DiskTiming timing in (DiskTiming[])
                [
                    new() { MeanNanoseconds = -1 },
                    new() { MeanNanoseconds = double.NaN },
                    new() { Jitter = 1.5 },
                    new() { Jitter = double.NaN },
                    new() { QueueDepth = 0 },
                    new() { QueueDepth = 1025 },
                ]
        )
        {
            Assert.Throws<ArgumentOutOfRangeException>(() => new Disk(storage, timing));
        }
    }
}
