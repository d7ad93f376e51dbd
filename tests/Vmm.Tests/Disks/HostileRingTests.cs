using VirtBench.Vmm.Disks;

namespace VirtBench.Vmm.Tests.Disks;

/// <summary>
/// What a guest may write into its rings without harm to anybody else: an error status where the request can be answered, a device
/// that needs a reset where it cannot.
/// </summary>
public sealed class HostileRingTests : IDisposable
{
    private const int Line = VirtioBlock.InterruptLine;
    private const uint Ram = 4 << 20;

    private DiskMachine _machine = new();

    public void Dispose() => _machine.Dispose();

    private void NeedsReset(VirtioDriver driver)
    {
        driver.Notify();
        _machine.Pass();
        Assert.True(driver.NeedsReset);
        Assert.Equal(2u, driver.InterruptStatus & 2);
        Assert.Equal(1, _machine.Requests(Line));

        // It does nothing more until it is reset, and works again then.
        ushort used = driver.UsedIndex;
        _ = driver.Read(0, 1);
        driver.Notify();
        _machine.Pass();
        Assert.Equal(used, driver.UsedIndex);
        _machine.Vm.Memory.Clear(VirtioDriver.Descriptors, 0x10_0000);
        driver = new VirtioDriver(_machine);
        Assert.False(driver.NeedsReset);
        _ = driver.Read(1, 1);
        driver.Notify();
        _machine.Pass();
        Assert.Equal(0, driver.Status());
        Assert.Equal(DiskMachine.Content(1, 1), driver.Bytes(VirtioDriver.Data, 512));
    }

    private void Refused(VirtioDriver driver, byte status = 1)
    {
        long before = _machine.Statistics.Errors;
        driver.Notify();
        _machine.Pass();
        Assert.False(driver.NeedsReset);
        Assert.Equal(1u, driver.TakeUsed().Written);
        Assert.Equal(status, driver.Status());
        Assert.Equal(before + 1, _machine.Statistics.Errors);
    }

    [Theory]
    [InlineData(0, 0x10_0000UL, 0x10_2000UL, 0x10_3000UL)] // no descriptors
    [InlineData(3, 0x10_0000UL, 0x10_2000UL, 0x10_3000UL)] // no power of two
    [InlineData(512, 0x10_0000UL, 0x10_2000UL, 0x10_3000UL)] // more than there may be
    [InlineData(-1, 0x10_0000UL, 0x10_2000UL, 0x10_3000UL)]
    [InlineData(256, 0x10_0008UL, 0x10_2000UL, 0x10_3000UL)] // misaligned
    [InlineData(256, 0x10_0000UL, 0x10_2001UL, 0x10_3000UL)]
    [InlineData(256, 0x10_0000UL, 0x10_2000UL, 0x10_3002UL)]
    [InlineData(256, 0x40_0000UL, 0x10_2000UL, 0x10_3000UL)] // outside RAM
    [InlineData(256, 0x3F_F010UL, 0x10_2000UL, 0x10_3000UL)] // half outside
    [InlineData(256, 0x10_0000UL, 0xFFFF_FFFF_FFFF_FFFEUL, 0x10_3000UL)]
    [InlineData(256, 0x10_0000UL, 0x3F_FDFCUL, 0x10_3000UL)] // all but the event index inside
    [InlineData(256, 0x10_0000UL, 0x10_2000UL, 0x3F_F7FCUL)]
    [InlineData(256, 0x10_0000UL, 0x10_2000UL, 0xD000_0000UL)] // the device itself
    public void A_ring_that_is_not_wholly_in_RAM_and_aligned_needs_a_reset(
        int size,
        ulong descriptors,
        ulong available,
        ulong used
    )
    {
        var driver = new VirtioDriver(_machine, start: false);
        driver.SetUp(size, descriptors, available, used);
        Assert.True(driver.NeedsReset);
        Assert.Equal(0u, _machine.ReadRegister(0x44));
        _machine.WriteRegister(0x70, 15);
        driver.Notify();
        _machine.Pass();
        Assert.Equal(0, _machine.Statistics.Requests);
    }

    [Fact]
    public void A_ring_at_the_very_end_of_RAM_works()
    {
        var driver = new VirtioDriver(_machine, start: false);
        driver.SetUp(256, VirtioDriver.Descriptors, Ram - (4 + 512 + 2), VirtioDriver.Used);
        Assert.False(driver.NeedsReset);
        Assert.Equal(1u, _machine.ReadRegister(0x44));
    }

    [Fact]
    public void A_ring_cannot_be_moved_while_it_is_in_use()
    {
        var driver = new VirtioDriver(_machine);
        _machine.WriteRegister(0x90, 0xDEAD_0000);
        _machine.WriteRegister(0x38, 1);
        _ = driver.Read(0, 1);
        driver.Notify();
        _machine.Pass();
        Assert.Equal(0, driver.Status());
    }

    [Fact]
    public void A_loop_in_a_chain_needs_a_reset()
    {
        var driver = new VirtioDriver(_machine);
        driver.WriteDescriptor(VirtioDriver.Descriptors, 0, driver.Header(0, 0), 16, 1, 1);
        driver.WriteDescriptor(VirtioDriver.Descriptors, 1, VirtioDriver.Data, 512, 3, 1);
        driver.Offer(0);
        NeedsReset(driver);
    }

    [Fact]
    public void A_chain_that_leads_outside_the_table_needs_a_reset()
    {
        var driver = new VirtioDriver(_machine);
        driver.WriteDescriptor(VirtioDriver.Descriptors, 0, driver.Header(0, 0), 16, 1, 256);
        driver.Offer(0);
        NeedsReset(driver);
    }

    [Fact]
    public void A_head_outside_the_table_needs_a_reset()
    {
        var driver = new VirtioDriver(_machine);
        driver.Offer(256);
        NeedsReset(driver);
    }

    [Fact]
    public void An_index_that_jumps_by_more_than_the_ring_needs_a_reset()
    {
        var driver = new VirtioDriver(_machine) { Index = 256 };
        driver.Offer(0);
        NeedsReset(driver);
    }

    [Fact]
    public void More_chains_than_descriptors_under_way_need_a_reset()
    {
        _machine.Dispose();
        _machine = new DiskMachine(timing: new DiskTiming { MeanNanoseconds = 1e6, QueueDepth = 1 });
        var driver = new VirtioDriver(_machine, size: 4);
        int head = driver.Read(0, 1);
        driver.Notify();
        for (int i = 0; i < 3; i++)
        {
            driver.Offer(head); // the same chain, which has not been given back
            driver.Notify();
        }

        Assert.False(driver.NeedsReset);
        driver.Offer(head);
        driver.Notify();
        Assert.True(driver.NeedsReset);
    }

    [Theory]
    [InlineData(4, 0u, 0)] // no bytes
    [InlineData(4, 40u, 0)] // no whole descriptors
    [InlineData(4, 257u * 16, 0)] // more than the queue has
    [InlineData(5, 48u, 0)] // a table, and a next descriptor
    [InlineData(4, 48u, 4)] // a table in a table
    public void A_table_that_is_none_needs_a_reset(int flags, uint length, int innerFlags)
    {
        var driver = new VirtioDriver(_machine, VirtioDriver.Features | VirtioDriver.Indirect);
        const ulong table = 0x14_0000;
        driver.WriteDescriptor(table, 0, table, 16, innerFlags, 0);
        driver.WriteDescriptor(VirtioDriver.Descriptors, 0, table, length, flags, 1);
        driver.Offer(0);
        NeedsReset(driver);
    }

    [Fact]
    public void A_table_outside_RAM_needs_a_reset()
    {
        var driver = new VirtioDriver(_machine, VirtioDriver.Features | VirtioDriver.Indirect);
        driver.WriteDescriptor(VirtioDriver.Descriptors, 0, Ram - 16, 48, 4, 0);
        driver.Offer(0);
        NeedsReset(driver);
    }

    [Fact]
    public void A_table_that_was_not_negotiated_needs_a_reset()
    {
        var driver = new VirtioDriver(_machine);
        driver.WriteDescriptor(VirtioDriver.Descriptors, 0, 0x14_0000, 48, 4, 0);
        driver.Offer(0);
        NeedsReset(driver);
    }

    [Fact]
    public void A_part_to_read_behind_one_to_write_needs_a_reset()
    {
        var driver = new VirtioDriver(_machine);
        _ = driver.Add(new Part(VirtioDriver.StatusOf(), 1, true), new Part(driver.Header(0, 0), 16));
        NeedsReset(driver);
    }

    [Fact]
    public void A_request_without_a_status_needs_a_reset()
    {
        var driver = new VirtioDriver(_machine);
        _ = driver.Add(new Part(driver.Header(1, 0), 16), new Part(VirtioDriver.Data, 512));
        NeedsReset(driver);
    }

    [Fact]
    public void A_status_outside_RAM_needs_a_reset()
    {
        var driver = new VirtioDriver(_machine);
        _ = driver.Add(new Part(driver.Header(4, 0), 16), new Part(Ram, 1, true));
        NeedsReset(driver);
    }

    [Theory]
    [InlineData(0x40_0000UL, 512u)]
    [InlineData(0x3F_FF00UL, 512u)]
    [InlineData(0xFFFF_FFFF_FFFF_FE00UL, 512u)]
    [InlineData(0x12_0000UL, 0xFFFF_FE00u)]
    [InlineData(0xD000_0000UL, 512u)]
    public void Data_outside_RAM_is_an_IO_error(ulong address, uint length)
    {
        foreach (uint type in (uint[])[0, 1])
        {
            var driver = new VirtioDriver(_machine);
            _ = driver.Add(
                new Part(driver.Header(type, 0), 16),
                new Part(address, length, type == 0),
                new Part(VirtioDriver.StatusOf(), 1, true)
            );
            Refused(driver);
            _machine.Vm.Memory.Write(VirtioDriver.Available + 2, (ushort)0);
            _machine.Vm.Memory.Write(VirtioDriver.Used + 2, (ushort)0);
        }
    }

    [Theory]
    [InlineData(2048, 512u)]
    [InlineData(2047, 1024u)]
    [InlineData(ulong.MaxValue, 512u)]
    [InlineData(ulong.MaxValue / 512, 512u)]
    [InlineData(0, 511u)]
    [InlineData(0, 513u)]
    public void Sectors_that_are_not_there_or_not_whole_are_an_IO_error(ulong sector, uint length)
    {
        var driver = new VirtioDriver(_machine);
        _ = driver.Add(
            new Part(driver.Header(0, sector), 16),
            new Part(VirtioDriver.Data, length, true),
            new Part(VirtioDriver.StatusOf(), 1, true)
        );
        Refused(driver);
        Assert.Equal(new byte[length], driver.Bytes(VirtioDriver.Data, (int)length));
    }

    [Fact]
    public void An_absurd_number_of_bytes_is_an_IO_error()
    {
        _machine.Dispose();
        _machine = new DiskMachine(new RamStorage(64 << 20));
        var driver = new VirtioDriver(_machine);
        Part[] data = [.. Enumerable.Repeat(new Part(VirtioDriver.Data, 1 << 20, true), 17)];
        _ = driver.Add([new Part(driver.Header(0, 0), 16), .. data, new Part(VirtioDriver.StatusOf(), 1, true)]);
        Refused(driver);
    }

    [Fact]
    public void A_header_that_is_too_short_or_the_device_s_to_write_is_an_IO_error()
    {
        var driver = new VirtioDriver(_machine);
        _ = driver.Add(new Part(driver.Header(0, 0), 15), new Part(VirtioDriver.StatusOf(), 1, true));
        Refused(driver);
        _ = driver.Add(new Part(driver.Header(0, 0), 16, true), new Part(VirtioDriver.StatusOf(), 1, true));
        Refused(driver);
    }

    [Fact]
    public void Data_in_the_wrong_direction_are_no_data()
    {
        var driver = new VirtioDriver(_machine);
        _ = driver.Add(
            new Part(driver.Header(0, 0), 16),
            new Part(VirtioDriver.Data, 512), // for the device to read
            new Part(VirtioDriver.StatusOf(), 1, true)
        );
        driver.Notify();
        _machine.Pass();
        Assert.Equal(1u, driver.TakeUsed().Written);
        Assert.Equal(0, _machine.Statistics.BytesRead);
        _ = driver.Add(
            new Part(driver.Header(1, 0), 16),
            new Part(VirtioDriver.Data, 512, true), // for the device to write
            new Part(VirtioDriver.StatusOf(), 1, true)
        );
        driver.Notify();
        _machine.Pass();
        Assert.Equal(0, _machine.Statistics.BytesWritten);
    }

    [Fact]
    public void Rings_of_random_bytes_harm_nobody()
    {
        var random = new Random(1);
        for (int i = 0; i < 300; i++)
        {
            var driver = new VirtioDriver(
                _machine,
                VirtioDriver.Features | VirtioDriver.Indirect | VirtioDriver.EventIndex,
                size: 16
            );
            byte[] bytes = new byte[0x5000];
            random.NextBytes(bytes);
            _machine.Vm.Memory.Write(VirtioDriver.Descriptors, bytes);

            // Lengths and addresses that lead somewhere more often than random ones do.
            for (int descriptor = 0; descriptor < 16; descriptor++)
            {
                driver.WriteDescriptor(
                    VirtioDriver.Descriptors,
                    descriptor,
                    VirtioDriver.Descriptors + (ulong)random.Next(0x2_0000),
                    (uint)random.Next(1200),
                    random.Next(8),
                    random.Next(17)
                );
            }

            _machine.Vm.Memory.Write(VirtioDriver.Available + 2, (ushort)random.Next(18));
            for (int offset = 0; offset < 16; offset++)
            {
                _machine.Vm.Memory.Write(VirtioDriver.Available + 4 + (2 * (ulong)offset), (ushort)random.Next(17));
            }

            driver.Notify();
            _machine.Pass();
        }

        Assert.Null(_machine.Service.Failure);
        Assert.Null(_machine.Vm.DiskHostError);
    }

    [Fact]
    public void Random_register_writes_harm_nobody()
    {
        var random = new Random(2);
        for (int i = 0; i < 20_000; i++)
        {
            int register = 4 * random.Next(0x48);
            uint value = random.Next(3) switch
            {
                0 => (uint)random.Next(16),
                1 => (uint)random.Next(1 << 22),
                _ => (uint)random.NextInt64(1L << 32),
            };
            _machine.WriteRegister(register, value);
            _ = _machine.ReadRegister(register);
            int port = random.Next(9);
            _machine.Out(port == 8 ? 0x3F6 : 0x1F0 + port, (byte)random.Next(256));
            if (i % 16 == 0)
            {
                _machine.Pass();
            }
        }

        Assert.Null(_machine.Service.Failure);
    }
}
