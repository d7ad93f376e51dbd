using System.Text;
using VirtBench.Vmm.Disks;
using VirtBench.Vmm.Interrupts;

namespace VirtBench.Vmm.Tests.Disks;

/// <summary>virtio-blk as a driver sees it: registers, requests, notifications both ways.</summary>
public sealed class VirtioBlockTests : IDisposable
{
    private const int Line = VirtioBlock.InterruptLine;

    private DiskMachine _machine = new();

    public void Dispose() => _machine.Dispose();

    private void Attach(
        IBlockStorage? storage = null,
        DiskTiming? timing = null,
        InterruptDelivery delivery = InterruptDelivery.Exit,
        bool thread = false
    )
    {
        _machine.Dispose();
        _machine = new DiskMachine(storage, timing, delivery, thread);
    }

    [Fact]
    public void The_registers_identify_a_block_device_of_version_2()
    {
        Assert.Equal(0x7472_6976u, _machine.ReadRegister(0));
        Assert.Equal(2u, _machine.ReadRegister(4));
        Assert.Equal(2u, _machine.ReadRegister(8));
        _machine.WriteRegister(0x14, 1);
        Assert.Equal(1u, _machine.ReadRegister(0x10));
        _machine.WriteRegister(0x14, 0);
        Assert.Equal((1u << 29) | (1u << 28) | (1u << 9) | (1u << 2) | (1u << 1), _machine.ReadRegister(0x10));
        _machine.WriteRegister(0x14, 2);
        Assert.Equal(0u, _machine.ReadRegister(0x10));
        Assert.Equal(256u, _machine.ReadRegister(0x34));
        _machine.WriteRegister(0x30, 1);
        Assert.Equal(0u, _machine.ReadRegister(0x34)); // no second queue
        Assert.Equal(uint.MaxValue, _machine.ReadRegister(0xB0));
        Assert.Equal(0u, _machine.ReadRegister(0xFC));
        Assert.Equal(2048u, _machine.ReadRegister(0x100));
        Assert.Equal(0u, _machine.ReadRegister(0x104));
        Assert.Equal(VirtioBlock.SegmentSizeMaximum, _machine.ReadRegister(0x108));
        Assert.Equal(254u, _machine.ReadRegister(0x10C));
        Assert.Equal(0u, _machine.ReadRegister(0xFFC));
        byte[] capacity = new byte[8];
        _machine.Vm.AbsentMemory.Read(VirtioBlock.Address + 0x100, capacity, 0);
        Assert.Equal(2048u, BitConverter.ToUInt64(capacity));
        Assert.Equal(0, _machine.Vm.AbsentMemory.UnclaimedAccesses);
    }

    [Fact]
    public void Registers_are_accessed_by_aligned_doublewords_only()
    {
        byte[] value = new byte[1];
        _machine.Vm.AbsentMemory.Read(VirtioBlock.Address, value, 0);
        Assert.Equal(0, value[0]);
        _machine.Vm.AbsentMemory.Write(VirtioBlock.Address + 0x70, (byte[])[1], 0);
        Assert.Equal(0u, _machine.ReadRegister(0x70));
    }

    [Theory]
    [InlineData(1UL << 32, true)]
    [InlineData((1UL << 32) | (1UL << 29) | (1UL << 28) | (1UL << 9), true)]
    [InlineData(0, false)] // a legacy driver
    [InlineData((1UL << 32) | 1, false)] // a feature that was not offered
    [InlineData((1UL << 32) | (1UL << 5), false)] // read-only, which this disk is not
    public void Features_are_accepted_when_offered_and_with_version_1(ulong features, bool accepted)
    {
        _ = new VirtioDriver(_machine, features, start: false);
        Assert.Equal(accepted ? 11u : 3u, _machine.ReadRegister(0x70));
    }

    [Fact]
    public void Requests_move_sectors_in_segments_of_any_size()
    {
        var driver = new VirtioDriver(_machine);
        int head = driver.Read(5, 4);
        driver.Notify();
        _machine.Pass();
        Assert.Equal(((uint)head, (4 * 512) + 1u), driver.TakeUsed());
        Assert.Equal(0, driver.Status());
        Assert.Equal(DiskMachine.Content(5, 4), driver.Bytes(VirtioDriver.Data, 4 * 512));

        // The header in two pieces, the data in odd ones, the status behind the last of them.
        ulong header = driver.Header(0, 9);
        _ = driver.Add(
            new Part(header, 7),
            new Part(header + 7, 9),
            new Part(VirtioDriver.Data, 100, true),
            new Part(VirtioDriver.Data + 1000, 900, true),
            new Part(VirtioDriver.Data + 5000, 25, true)
        );
        driver.Notify();
        _machine.Pass();
        byte[] expected = DiskMachine.Content(9, 2);
        Assert.Equal(expected[..100], driver.Bytes(VirtioDriver.Data, 100));
        Assert.Equal(expected[100..1000], driver.Bytes(VirtioDriver.Data + 1000, 900));
        Assert.Equal(expected[1000..], driver.Bytes(VirtioDriver.Data + 5000, 24));
        Assert.Equal(0, _machine.Vm.Memory.Read<byte>(VirtioDriver.Data + 5024));
    }

    [Fact]
    public void Written_data_is_found_in_the_file_afterwards()
    {
        string path = Path.GetTempFileName();
        try
        {
            File.WriteAllBytes(path, new byte[64 * 512]);
            Attach(new FileStorage(path, readOnly: false));
            var driver = new VirtioDriver(_machine);
            byte[] data = DiskMachine.Pattern(6 * 512, 5);
            _machine.Vm.Memory.Write(VirtioDriver.Data, data);
            ulong header = driver.Header(1, 7);
            _ = driver.Add(
                new Part(header, 16),
                new Part(VirtioDriver.Data, 512),
                new Part(VirtioDriver.Data + 512, 5 * 512),
                new Part(VirtioDriver.StatusOf(), 1, true)
            );
            ulong flush = driver.Header(4, 0, slot: 1);
            _ = driver.Add(new Part(flush, 16), new Part(VirtioDriver.StatusOf(1), 1, true));
            driver.Notify();
            _machine.Pass();
            Assert.Equal(((byte)0, (byte)0), (driver.Status(), driver.Status(1)));
            Assert.Equal((uint)1, driver.TakeUsed().Written);
            Assert.Equal(1, _machine.Statistics.Flushes);
            _machine.Dispose();
            Assert.Equal(data, File.ReadAllBytes(path)[(7 * 512)..(13 * 512)]);
        }
        finally
        {
            File.Delete(path);
        }
    }

    [Fact]
    public void The_whole_disk_can_be_read_round_the_ring_many_times()
    {
        foreach (bool thread in (bool[])[false, true])
        {
            Attach(thread: thread);
            var driver = new VirtioDriver(_machine, size: 8);
            using var all = new MemoryStream();
            for (ulong sector = 0; sector < 2048; sector += 2)
            {
                _ = driver.Read(sector, 2);
                driver.Notify();
                _machine.Pass();
                Assert.Equal(1025u, driver.TakeUsed().Written);
                all.Write(driver.Bytes(VirtioDriver.Data, 1024));
                Assert.Equal(1u, driver.InterruptStatus);
                driver.Acknowledge();
            }

            Assert.Equal(DiskMachine.Content(0, 2048), all.ToArray());
            Assert.Equal(1024, _machine.Requests(Line));
        }
    }

    [Fact]
    public void GET_ID_answers_and_unknown_types_are_unsupported()
    {
        var driver = new VirtioDriver(_machine);
        _ = driver.Add(
            new Part(driver.Header(8, 0), 16),
            new Part(VirtioDriver.Data, 20, true),
            new Part(VirtioDriver.StatusOf(), 1, true)
        );
        _ = driver.Add(new Part(driver.Header(11, 0, slot: 1), 16), new Part(VirtioDriver.StatusOf(1), 1, true));
        driver.Notify();
        _machine.Pass();
        Assert.Equal(
            VirtioBlock.SerialNumber,
            Encoding.ASCII.GetString(driver.Bytes(VirtioDriver.Data, 20)).TrimEnd('\0')
        );
        Assert.Equal(21u, driver.TakeUsed().Written);
        Assert.Equal(2, driver.Status(1));
    }

    [Fact]
    public void A_read_only_disk_says_so_and_refuses_writes()
    {
        Attach(new RamStorage(1 << 20, DiskMachine.Seed, readOnly: true));
        var driver = new VirtioDriver(_machine, VirtioDriver.Features | (1UL << 5));
        _ = driver.Write(0, 1);
        driver.Notify();
        _machine.Pass();
        Assert.Equal(1, driver.Status());
        Assert.Equal(0, _machine.Statistics.BytesWritten);
    }

    [Fact]
    public void What_the_host_cannot_do_is_an_IO_error_and_a_line_for_the_user()
    {
        Attach(new FailingStorage(64) { FailsFrom = 10, FailsToFlush = true });
        var driver = new VirtioDriver(_machine);
        _ = driver.Read(10, 1);
        _ = driver.Write(10, 1, slot: 1);
        _ = driver.Add(new Part(driver.Header(4, 0, slot: 2), 16), new Part(VirtioDriver.StatusOf(2), 1, true));
        _ = driver.Read(9, 1, slot: 3);
        driver.Notify();
        _machine.Pass();
        Assert.Equal([1, 1, 1, 0], Enumerable.Range(0, 4).Select(slot => driver.Status(slot)));
        Assert.False(driver.NeedsReset);
        Assert.Equal("no space left on device (the first of 3 errors)", _machine.Vm.DiskHostError);
        Assert.Equal(3, _machine.Statistics.Errors);
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void Indirect_tables_hold_whole_requests(bool thread)
    {
        Attach(thread: thread);
        var driver = new VirtioDriver(_machine, VirtioDriver.Features | VirtioDriver.Indirect);
        const ulong table = 0x14_0000;
        driver.WriteDescriptor(table, 0, driver.Header(0, 3), 16, 1, 2);
        driver.WriteDescriptor(table, 2, VirtioDriver.Data, 512, 3, 1);
        driver.WriteDescriptor(table, 1, VirtioDriver.StatusOf(), 1, 2, 0);
        driver.WriteDescriptor(VirtioDriver.Descriptors, 9, table, 48, 4, 0);
        driver.Offer(9);
        driver.Notify();
        _machine.Pass();
        Assert.Equal((9u, 513u), driver.TakeUsed());
        Assert.Equal(DiskMachine.Content(3, 1), driver.Bytes(VirtioDriver.Data, 512));
    }

    [Fact]
    public void A_reset_gives_up_what_is_under_way_and_the_device_starts_anew()
    {
        Attach(timing: new DiskTiming { MeanNanoseconds = 1000 });
        var driver = new VirtioDriver(_machine);
        _ = driver.Read(0, 1);
        driver.Notify();
        _machine.WriteRegister(0x70, 0);
        Assert.Equal(0u, _machine.ReadRegister(0x70));
        Assert.Equal(0u, _machine.ReadRegister(0x44));
        _machine.Pass();
        Assert.Equal(0xEE, driver.Status());
        Assert.Equal(0, driver.UsedIndex);
        Assert.Equal(0, _machine.Requests(Line));

        _machine.Vm.Memory.Write(VirtioDriver.Available + 2, (ushort)0);
        driver = new VirtioDriver(_machine);
        _ = driver.Read(0, 1);
        driver.Notify();
        _machine.Pass();
        Assert.Equal(0, driver.Status());
        Assert.Equal(1, _machine.Requests(Line));
    }

    [Fact]
    public void Nothing_is_taken_before_the_driver_is_ready()
    {
        var driver = new VirtioDriver(_machine, start: false);
        driver.SetUp(256, VirtioDriver.Descriptors, VirtioDriver.Available, VirtioDriver.Used);
        _ = driver.Read(0, 1);
        driver.Notify();
        _machine.Pass();
        Assert.Equal(0, _machine.Statistics.Requests);
        _machine.WriteRegister(0x70, 15);
        _machine.Pass();
        Assert.Equal(1, _machine.Statistics.Completions); // without another notification
    }

    [Fact]
    public void NO_INTERRUPT_is_obeyed_and_NO_NOTIFY_is_taken_back_at_the_end()
    {
        var driver = new VirtioDriver(_machine);
        _machine.Vm.Memory.Write(VirtioDriver.Available, (ushort)1);
        _ = driver.Read(0, 1);
        driver.Notify();
        _machine.Pass();
        Assert.Equal(1, driver.UsedIndex);
        Assert.Equal(0, _machine.Requests(Line));
        Assert.Equal(0, driver.UsedFlags);

        _machine.Vm.Memory.Write(VirtioDriver.Available, (ushort)0);
        _ = driver.Read(0, 1);
        driver.Notify();
        _machine.Pass();
        Assert.Equal(1, _machine.Requests(Line));
    }

    [Theory]
    [InlineData(10, 10, 9, false)] // not there yet
    [InlineData(9, 10, 9, true)] // just passed
    [InlineData(8, 10, 9, false)] // passed before
    [InlineData(0xFFFF, 0, 0xFFFF, true)]
    [InlineData(0xFFFF, 1, 0, false)]
    [InlineData(2, 4, 0xFFFE, true)] // over the wrap
    [InlineData(0xFFFE, 4, 0xFFFE, true)]
    [InlineData(0xFFFD, 4, 0xFFFE, false)]
    [InlineData(4, 4, 0xFFFE, false)]
    [InlineData(0, 0x8000, 0, true)]
    public void An_event_index_is_passed_modulo_65536(ushort waitsFor, ushort now, ushort old, bool needed) =>
        Assert.Equal(needed, VirtioLayout.NeedsEvent(waitsFor, now, old));

    [Fact]
    public void The_driver_s_event_index_says_when_an_interrupt_is_wanted_also_over_the_wrap()
    {
        var driver = new VirtioDriver(_machine, VirtioDriver.Features | VirtioDriver.EventIndex, size: 4);
        long interrupts = 0;

        // An interrupt for every seventh, twice around 65536.
        for (int i = 0; i < 140_000; i++)
        {
            driver.UsedEvent = (ushort)(i / 7 * 7);
            _ = driver.Read(0, 1);
            driver.Notify();
            _machine.Pass();
            Assert.Equal((ushort)(i + 1), driver.UsedIndex);
            Assert.Equal(driver.Index, driver.AvailableEvent);
            interrupts += i % 7 == 0 ? 1 : 0;
            Assert.Equal(interrupts, _machine.Requests(Line));
            driver.Acknowledge();
        }
    }

    [Fact]
    public void The_line_falls_when_the_last_cause_is_acknowledged()
    {
        var driver = new VirtioDriver(_machine);
        _ = driver.Read(0, 1);
        driver.Notify();
        _machine.Pass();
        _ = driver.Read(0, 1);
        driver.Notify();
        _machine.Pass();
        Assert.Equal(1, _machine.Requests(Line)); // still up from the first
        Assert.Equal(1u, driver.InterruptStatus);
        driver.Acknowledge();
        Assert.Equal(0u, driver.InterruptStatus);
        _ = driver.Read(0, 1);
        driver.Notify();
        _machine.Pass();
        Assert.Equal(2, _machine.Requests(Line));
        Assert.Equal(2, _machine.Statistics.Interrupts);
    }

    [Fact]
    public void Coalesced_one_interrupt_stands_for_eight_completions_or_for_100_µs()
    {
        Attach(delivery: InterruptDelivery.Coalesced);
        var driver = new VirtioDriver(_machine);
        for (int i = 0; i < 20; i++)
        {
            _ = driver.Read(0, 1);
        }

        driver.Notify();
        ulong start = _machine.Engine.Ticks;
        _machine.Pass(start);
        Assert.Equal(20, driver.UsedIndex);
        Assert.Equal(1, _machine.Requests(Line)); // twice eight, one of which was not acknowledged in between
        driver.Acknowledge();
        _machine.Pass(start + 199_999);
        Assert.Equal(0u, driver.InterruptStatus);
        _machine.Pass(start + 200_000); // 100 µs at 2 GHz
        Assert.Equal(1u, driver.InterruptStatus);
        Assert.Equal(2, _machine.Requests(Line));
    }

    [Fact]
    public void Coalesced_the_event_index_is_looked_at_for_all_that_was_held_back()
    {
        Attach(delivery: InterruptDelivery.Coalesced);
        var driver = new VirtioDriver(_machine, VirtioDriver.Features | VirtioDriver.EventIndex) { UsedEvent = 2 };
        for (int i = 0; i < 8; i++)
        {
            _ = driver.Read(0, 1);
        }

        driver.Notify();
        _machine.Pass(_machine.Engine.Ticks);
        Assert.Equal(1, _machine.Requests(Line));
    }
}
