using VirtBench.Vmm.Disks;
using VirtBench.Vmm.Interrupts;

namespace VirtBench.Vmm.Tests.Disks;

/// <summary>The ATA device as a guest's driver sees it through the ports.</summary>
public sealed class AtaChannelTests : IDisposable
{
    private const int Base = 0x1F0;
    private const int Control = 0x3F6;
    private const int Line = AtaChannel.InterruptLine;
    private const byte Ready = 0x50;
    private const byte Drq = 0x58;
    private const byte Busy = 0x80;
    private const byte Failed = 0x51;

    private DiskMachine _machine = new();

    public void Dispose() => _machine.Dispose();

    private void Attach(IBlockStorage storage, DiskTiming? timing = null)
    {
        _machine.Dispose();
        _machine = new DiskMachine(storage, timing);
    }

    private byte Status => _machine.In(Base + 7);

    private byte Error => _machine.In(Base + 1);

    private void Issue(int command, ulong sector, int count, bool extended = false)
    {
        if (extended)
        {
            _machine.Out(Base + 2, count >> 8);
            _machine.Out(Base + 3, (byte)(sector >> 24));
            _machine.Out(Base + 4, (byte)(sector >> 32));
            _machine.Out(Base + 5, (byte)(sector >> 40));
        }

        _machine.Out(Base + 2, (byte)count);
        _machine.Out(Base + 3, (byte)sector);
        _machine.Out(Base + 4, (byte)(sector >> 8));
        _machine.Out(Base + 5, (byte)(sector >> 16));
        _machine.Out(Base + 6, 0xE0 | (extended ? 0 : (byte)(sector >> 24) & 0x0F));
        _machine.Out(Base + 7, command);
    }

    // Block by block, as an interrupt-driven driver does: status, then the data.
    private byte[] ReadBlocks(int sectors, int perBlock = 1, int width = 2)
    {
        using var data = new MemoryStream();
        for (int done = 0; done < sectors; done += perBlock)
        {
            Assert.Equal(Drq, Status);
            for (int i = 0; i < Math.Min(perBlock, sectors - done) * 512; i += width)
            {
                uint value = _machine.Vm.Ports.Read(Base, width, 0);
                data.Write(BitConverter.GetBytes(value).AsSpan(0, width));
            }
        }

        Assert.Equal(Ready, Status);
        return data.ToArray();
    }

    private void WriteBlocks(byte[] data, int perBlock = 1, int width = 2)
    {
        for (int at = 0; at < data.Length; at += perBlock * 512)
        {
            Assert.Equal(Drq, Status);
            for (int i = at; i < Math.Min(data.Length, at + (perBlock * 512)); i += width)
            {
                uint value = width == 2 ? BitConverter.ToUInt16(data, i) : BitConverter.ToUInt32(data, i);
                _machine.Vm.Ports.Write(Base, width, value, 0);
            }
        }
    }

    public static TheoryData<int, int, int, bool> Reads =>
        new()
        {
            { 0x20, 3, 1, false },
            { 0x21, 1, 1, false },
            { 0x24, 300, 1, true },
            { 0xC4, 10, 4, false },
            { 0x29, 33, 16, true },
            { 0x20, 256, 1, false },
        };

    [Theory]
    [MemberData(nameof(Reads))]
    public void A_read_gives_the_sectors_and_one_interrupt_a_block(
        int command,
        int sectors,
        int perBlock,
        bool extended
    )
    {
        if (perBlock > 1)
        {
            Issue(0xC6, 0, perBlock);
            Assert.Equal(Ready, Status);
        }

        long before = _machine.Requests(Line);
        Issue(command, 5, sectors, extended);
        Assert.Equal(Busy, _machine.In(Control));
        _machine.Pass();
        byte[] data = ReadBlocks(sectors, perBlock, width: perBlock > 4 ? 4 : 2);
        Assert.Equal(DiskMachine.Content(5, sectors), data);
        Assert.Equal((sectors + perBlock - 1) / perBlock, _machine.Requests(Line) - before);
        Assert.Equal(sectors * 512, _machine.Statistics.BytesRead);
        Assert.Equal(1, _machine.Statistics.Completions);
    }

    [Theory]
    [InlineData(0x30, 3, 1, false)]
    [InlineData(0x31, 1, 1, false)]
    [InlineData(0x34, 300, 1, true)]
    [InlineData(0xC5, 10, 4, false)]
    [InlineData(0x39, 33, 16, true)]
    public void A_write_reaches_the_disk_with_one_interrupt_after_each_block(
        int command,
        int sectors,
        int perBlock,
        bool extended
    )
    {
        if (perBlock > 1)
        {
            Issue(0xC6, 0, perBlock);
            Assert.Equal(Ready, Status);
        }

        long before = _machine.Requests(Line);
        byte[] data = DiskMachine.Pattern(sectors * 512, command);
        Issue(command, 100, sectors, extended);
        Assert.Equal(before, _machine.Requests(Line)); // none before the first block
        WriteBlocks(data, perBlock, width: perBlock > 4 ? 4 : 2);
        Assert.Equal(Busy, Status);
        _machine.Pass();
        Assert.Equal(Ready, Status);
        Assert.Equal((sectors + perBlock - 1) / perBlock, _machine.Requests(Line) - before);
        byte[] found = new byte[data.Length];
        _machine.Storage.Read(100, found);
        Assert.Equal(data, found);
        Assert.Equal(data.Length, _machine.Statistics.BytesWritten);
    }

    [Fact]
    public void Data_written_by_the_guest_is_found_in_the_file_afterwards()
    {
        string path = Path.GetTempFileName();
        try
        {
            File.WriteAllBytes(path, new byte[64 * 512]);
            Attach(new FileStorage(path, readOnly: false));
            byte[] data = DiskMachine.Pattern(5 * 512, 9);
            Issue(0x30, 7, 5);
            WriteBlocks(data);
            _machine.Pass();
            Issue(0xE7, 0, 0);
            _machine.Pass();
            Assert.Equal(Ready, Status);
            _machine.Dispose();
            Assert.Equal(data, File.ReadAllBytes(path)[(7 * 512)..(12 * 512)]);
        }
        finally
        {
            File.Delete(path);
        }
    }

    [Fact]
    public void The_whole_disk_can_be_read()
    {
        const int sectors = 2048;
        Issue(0x24, 0, sectors, extended: true);
        _machine.Pass();
        Assert.Equal(DiskMachine.Content(0, sectors), ReadBlocks(sectors, width: 4));
        Issue(0x24, 0, 0, extended: true); // 65536 sectors: more than there are
        Assert.Equal(Failed, Status);
        Assert.Equal(0x10, Error);
    }

    [Fact]
    public void IDENTIFY_DEVICE_describes_the_disk()
    {
        Issue(0xC6, 0, 8);
        Issue(0xEC, 0, 0);
        byte[] page = ReadBlocks(1);
        ushort Word(int index) => BitConverter.ToUInt16(page, 2 * index);
        Assert.Equal(2048u, Word(60) | ((uint)Word(61) << 16));
        Assert.Equal(2048u, BitConverter.ToUInt64(page, 200));
        Assert.Equal(0x8010, Word(47));
        Assert.Equal(0x0108, Word(59));
        Assert.Equal(0, Word(49) & 0x100); // no DMA
        Assert.NotEqual(0, Word(83) & (1 << 10));
        Assert.Equal(0, page.Sum(value => value) & 0xFF);
        Assert.Equal(0xA5, page[510]);
        string model = string.Concat(
            Enumerable.Range(27, 20).Select(i => $"{(char)page[(2 * i) + 1]}{(char)page[2 * i]}")
        );
        Assert.Equal("VirtBench disk", model.TrimEnd());
    }

    [Theory]
    [InlineData(2047, 2, false, 0x20)]
    [InlineData(2048, 1, false, 0x30)]
    [InlineData(0x0FFF_FFFF, 1, false, 0x20)]
    [InlineData(0xFFFF_FFFF_FFFF, 1, true, 0x24)]
    [InlineData(0x1_0000_0000, 1, true, 0x34)]
    public void A_sector_that_is_not_there_is_not_found(ulong sector, int count, bool extended, int command)
    {
        Issue(command, sector, count, extended);
        Assert.Equal(1, _machine.Requests(Line));
        Assert.Equal(Failed, Status);
        Assert.Equal(0x10, Error);
        Assert.Equal(0, _machine.Statistics.Requests);
    }

    [Theory]
    [InlineData(0x00)]
    [InlineData(0xA1)] // IDENTIFY PACKET DEVICE
    [InlineData(0xC8)] // READ DMA
    [InlineData(0xC4)] // READ MULTIPLE before SET MULTIPLE MODE
    [InlineData(0xFF)]
    public void What_the_device_does_not_do_is_aborted(int command)
    {
        Issue(command, 0, 1);
        Assert.Equal(1, _machine.Requests(Line));
        Assert.Equal(Failed, Status);
        Assert.Equal(0x04, Error);
    }

    [Theory]
    [InlineData(0)]
    [InlineData(3)]
    [InlineData(32)]
    public void A_block_that_is_no_power_of_two_up_to_16_is_aborted(int sectors)
    {
        Issue(0xC6, 0, sectors);
        Assert.Equal(Failed, Status);
    }

    [Fact]
    public void Cylinder_head_sector_addresses_are_aborted()
    {
        _machine.Out(Base + 6, 0xA0);
        _machine.Out(Base + 7, 0x20);
        Assert.Equal(Failed, Status);
        Assert.Equal(0x04, Error);
    }

    [Theory]
    [InlineData(0x03, 0x0C, Ready)]
    [InlineData(0x03, 0x45, Failed)] // an Ultra DMA mode
    [InlineData(0x05, 0x00, Failed)]
    public void A_PIO_transfer_mode_can_be_set(int feature, int mode, byte status)
    {
        _machine.Out(Base + 1, feature);
        Issue(0xEF, 0, mode);
        Assert.Equal(status, Status);
        Assert.Equal(1, _machine.Requests(Line));
    }

    [Fact]
    public void Flushes_reach_the_storage_and_their_failure_the_guest()
    {
        var storage = new FailingStorage(64);
        Attach(storage);
        foreach (int command in (int[])[0xE7, 0xEA])
        {
            Issue(command, 0, 0);
            _machine.Pass();
            Assert.Equal(Ready, Status);
        }

        Assert.Equal(2, storage.Flushes);
        storage.FailsToFlush = true;
        Issue(0xE7, 0, 0);
        _machine.Pass();
        Assert.Equal(0x71, Status); // device fault
        Assert.Equal(0x04, Error);
    }

    [Fact]
    public void A_failing_read_or_write_is_an_error_at_its_sector_and_a_line_for_the_user()
    {
        var storage = new FailingStorage(64) { FailsFrom = 10 };
        Attach(storage);
        Issue(0x20, 8, 4);
        _machine.Pass();
        Assert.Equal(1, _machine.Requests(Line));
        Assert.Equal(Failed, Status);
        Assert.Equal(0x40, Error);
        Assert.Equal(10, _machine.In(Base + 3));

        Issue(0x30, 12, 1);
        WriteBlocks(new byte[512]);
        _machine.Pass();
        Assert.Equal(0x71, Status);
        Assert.Equal("no space left on device (the first of 2 errors)", _machine.Vm.DiskHostError);
        Assert.Equal(2, _machine.Statistics.Errors);
        Assert.Equal(0, _machine.Statistics.BytesRead);

        Issue(0x20, 0, 1);
        _machine.Pass();
        Assert.Equal(DiskMachine.Content(0, 1), ReadBlocks(1));
    }

    [Fact]
    public void A_read_only_disk_aborts_writes()
    {
        Attach(new RamStorage(1 << 20, DiskMachine.Seed, readOnly: true));
        Issue(0x30, 0, 1);
        Assert.Equal(Failed, Status);
        Assert.Equal(0x04, Error);
        Issue(0x20, 0, 1);
        _machine.Pass();
        Assert.Equal(DiskMachine.Content(0, 1), ReadBlocks(1));
    }

    [Fact]
    public void Reading_the_status_takes_the_interrupt_back_and_the_alternate_status_does_not()
    {
        Issue(0x20, 0, 1);
        _machine.Pass();
        Assert.True(_machine.Vm.Interrupts.IsPending(Line));
        Assert.Equal(Drq, _machine.In(Control));
        Assert.True(_machine.Vm.Interrupts.IsPending(Line));
        Assert.Equal(Drq, Status);
        Issue(0xE7, 0, 0); // ignored: data are waiting
        Assert.Equal(Drq, Status);
        Assert.Equal(1, _machine.Statistics.Requests);
    }

    [Fact]
    public void NIEN_holds_the_interrupt_back_until_it_is_cleared()
    {
        _machine.Out(Control, 0x02);
        Issue(0x20, 0, 1);
        _machine.Pass();
        Assert.Equal(0, _machine.Requests(Line));
        _machine.Out(Control, 0);
        Assert.Equal(1, _machine.Requests(Line));

        _machine.Out(Control, 0x02);
        ReadBlocks(1);
        _machine.Out(Control, 0);
        Assert.Equal(1, _machine.Requests(Line)); // polled: nothing is left to say
    }

    [Fact]
    public void A_software_reset_gives_up_what_is_under_way()
    {
        Attach(new RamStorage(1 << 20, DiskMachine.Seed), new DiskTiming { MeanNanoseconds = 1000 });
        Issue(0x20, 0, 4);
        _machine.Out(Control, 0x04);
        Assert.Equal(Busy, Status);
        _machine.Out(Control, 0x00);
        Assert.Equal(Ready, Status);
        Assert.Equal(1, Error);
        Assert.Equal(
            (1, 1, 0, 0),
            (_machine.In(Base + 2), _machine.In(Base + 3), _machine.In(Base + 4), _machine.In(Base + 5))
        );
        _machine.Pass();
        Assert.Equal(Ready, Status);
        Assert.Equal(0, _machine.Requests(Line));
        Assert.Equal(0, _machine.Statistics.Completions);
        Issue(0x20, 1, 1);
        _machine.Pass();
        Assert.Equal(DiskMachine.Content(1, 1), ReadBlocks(1));
    }

    [Fact]
    public void Resets_and_commands_without_end_leave_nothing_behind()
    {
        Attach(new RamStorage(1 << 20, DiskMachine.Seed), new DiskTiming { MeanNanoseconds = 1e9, QueueDepth = 1 });
        for (int i = 0; i < 1000; i++)
        {
            Issue(0x20, 0, 1);
            _machine.Out(Control, 0x04);
            _machine.Out(Control, 0x00);
        }

        Assert.Equal(ulong.MaxValue, _machine.Service.NextEvent);
    }

    [Fact]
    public void Device_1_is_not_there()
    {
        _machine.Out(Base + 6, 0xF0);
        Assert.Equal(0, Status);
        _machine.Out(Base + 7, 0xEC);
        Assert.Equal(0, Status);
        Assert.Equal(0, _machine.Requests(Line));
        _machine.Out(Base + 7, 0x90); // EXECUTE DEVICE DIAGNOSTIC is for both
        Assert.Equal(Ready, Status);
        Assert.Equal(1, Error);
        _machine.Out(Base + 6, 0xE0);
        Assert.Equal(Ready, Status);
    }

    [Fact]
    public void The_high_order_bytes_are_read_with_HOB()
    {
        Issue(0x24, 0x0123_4567_89AB, 0x1234, extended: true);
        _machine.Out(Control, 0x80);
        Assert.Equal(
            (0x12, 0x45, 0x23, 0x01),
            (_machine.In(Base + 2), _machine.In(Base + 3), _machine.In(Base + 4), _machine.In(Base + 5))
        );
        _machine.Out(Control, 0x00);
        Assert.Equal(
            (0x34, 0xAB, 0x89, 0x67),
            (_machine.In(Base + 2), _machine.In(Base + 3), _machine.In(Base + 4), _machine.In(Base + 5))
        );
    }

    [Fact]
    public void Without_a_disk_ports_and_addresses_are_unclaimed()
    {
        using var vm = new Execution.VirtualMachine(4 << 20, (cpu, _) => new ScriptedEngine(cpu));
        Assert.Equal(0xFFu, vm.Ports.Read(Base + 7, 1, 0));
        byte[] value = new byte[4];
        vm.AbsentMemory.Read(VirtioBlock.Address, value, 0);
        Assert.Equal([0xFF, 0xFF, 0xFF, 0xFF], value);
        Assert.Equal(1, vm.Ports.UnclaimedAccesses);
        Assert.Equal(1, vm.AbsentMemory.UnclaimedAccesses);
        Assert.Null(vm.DiskStatistics());
    }

    [Fact]
    public void Data_ports_give_ones_while_there_are_no_data()
    {
        Assert.Equal(0xFFFFu, _machine.Vm.Ports.Read(Base, 2, 0));
        _machine.Vm.Ports.Write(Base, 2, 0x1234, 0);
        Issue(0x30, 0, 1);
        Assert.Equal(0xFFFFu, _machine.Vm.Ports.Read(Base, 2, 0)); // the guest is to write
        WriteBlocks(new byte[512]);
        _machine.Pass();
        Assert.Equal(Ready, Status);
    }

    [Fact]
    public void A_disk_on_its_own_thread_serves_the_same_commands()
    {
        _machine.Dispose();
        _machine = new DiskMachine(thread: true);
        for (int i = 0; i < 50; i++)
        {
            byte[] data = DiskMachine.Pattern(1024, i);
            Issue(0x30, (ulong)(2 * i), 2);
            WriteBlocks(data);
            _machine.Pass();
            Issue(0x20, (ulong)(2 * i), 2);
            _machine.Pass();
            Assert.Equal(data, ReadBlocks(2));
        }

        Assert.Equal(100, _machine.Statistics.Completions);
        Assert.Equal(200, _machine.Requests(Line));
        Assert.Equal(200, _machine.Statistics.Interrupts);
    }

    [Fact]
    public void Coalesced_an_interrupt_that_polling_has_made_needless_does_not_come()
    {
        _machine.Dispose();
        _machine = new DiskMachine(delivery: InterruptDelivery.Coalesced);
        Issue(0x20, 0, 1);
        _machine.Pass(_machine.Engine.Ticks);
        Assert.Equal(Drq, _machine.In(Control)); // done, and not yet told
        Assert.Equal(0, _machine.Requests(Line));
        Assert.Equal(Drq, Status);
        _machine.Pass();
        Assert.Equal(0, _machine.Requests(Line));

        Assert.Equal(DiskMachine.Content(0, 1), ReadBlocks(1));
        Issue(0x20, 1, 1);
        ulong told = _machine.Engine.Ticks + 200_000; // 100 µs at 2 GHz
        _machine.Pass(told - 1);
        Assert.Equal(0, _machine.Requests(Line));
        _machine.Pass(told);
        Assert.Equal(1, _machine.Requests(Line));
    }
}
