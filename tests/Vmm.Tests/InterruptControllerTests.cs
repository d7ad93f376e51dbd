using VirtBench.Vmm.Interrupts;

namespace VirtBench.Vmm.Tests;

/// <summary>The pair of 8259A as the data sheet describes them and as kernels program them.</summary>
public sealed class InterruptControllerTests
{
    private const ushort Master = InterruptController.MasterPort;
    private const ushort Slave = InterruptController.SlavePort;

    private const int NonSpecificEoi = 0x20;
    private const int SpecificEoi = 0x60;
    private const int RotateOnNonSpecificEoi = 0xA0;
    private const int RotateOnSpecificEoi = 0xE0;
    private const int SetPriority = 0xC0;
    private const int RotateOnAutomaticEoi = 0x80;
    private const int StopRotating = 0x00;
    private const int ReadRequests = 0x0A;
    private const int ReadInService = 0x0B;
    private const int Poll = 0x0C;
    private const int SpecialMask = 0x68;
    private const int NoSpecialMask = 0x48;

    private readonly InterruptController _pic = new();

    private void Out(int port, int value) => _pic.Write((ushort)port, 1, (uint)value);

    private byte In(int port) => (byte)_pic.Read((ushort)port, 1);

    private byte Register(int port, int which)
    {
        Out(port, which);
        return In(port);
    }

    // Vectors from 0x20 and from 0x28, edge-triggered, cascaded, nothing masked.
    private InterruptControllerTests Initialized(int icw4 = 0x01, int slaveIcw4 = 0x01, int icw1 = 0x11)
    {
        foreach (
            (int port, int vector, int wiring, int mode) in ((int, int, int, int)[])
                [(Master, 0x20, 0x04, icw4), (Slave, 0x28, 0x02, slaveIcw4)]
        )
        {
            Out(port, icw1);
            Out(port + 1, vector);
            Out(port + 1, wiring);
            Out(port + 1, mode);
        }

        return this;
    }

    private int[] Drain(int most = 20)
    {
        var taken = new List<int>();
        while (_pic.Requested && taken.Count < most)
        {
            taken.Add(_pic.Acknowledge());
        }

        return [.. taken];
    }

    // ------------------------------------------------------------------------------------------ initialization

    [Fact]
    public void Nothing_is_requested_before_initialization()
    {
        for (int line = 0; line < InterruptController.Lines; line++)
        {
            _pic.SetLine(line, true);
            Assert.True(_pic.IsMasked(line));
        }

        Out(Master + 1, 0); // a mask alone does not make a controller of it
        Assert.False(_pic.Requested);
    }

    [Theory]
    [InlineData(1)] // ICW1 only
    [InlineData(2)]
    [InlineData(3)]
    public void Nothing_is_requested_in_the_middle_of_initialization(int words)
    {
        int[] sequence = [0x11, 0x20, 0x04, 0x01];
        for (int i = 0; i < words; i++)
        {
            Out(i == 0 ? Master : Master + 1, sequence[i]);
        }

        _pic.Pulse(3);
        Assert.False(_pic.Requested);
        Assert.Equal(0, Register(Master, Poll));
        for (int i = words; i < sequence.Length; i++)
        {
            Out(Master + 1, sequence[i]);
        }

        Assert.True(_pic.Requested);
        Assert.Equal(0x23, _pic.Acknowledge());
    }

    [Fact]
    public void Without_ICW4_the_initialization_ends_one_word_earlier_and_its_modes_are_off()
    {
        _ = Initialized(icw4: 0x03);
        Out(Master, 0x10);
        Out(Master + 1, 0x40);
        Out(Master + 1, 0x04);
        Out(Master + 1, 0xFE); // OCW1 already
        Assert.Equal(0xFE, In(Master + 1));
        _pic.Pulse(0);
        Assert.Equal(0x40, _pic.Acknowledge());
        Assert.Equal(0x01, Register(Master, ReadInService)); // no automatic EOI any more
    }

    [Fact]
    public void A_single_controller_gets_no_ICW3()
    {
        Out(Master, 0x13);
        Out(Master + 1, 0x40);
        Out(Master + 1, 0x01);
        Out(Master + 1, 0x7F);
        Assert.Equal(0x7F, In(Master + 1));
        _pic.Pulse(7);
        Assert.Equal(0x47, _pic.Acknowledge());
    }

    [Fact]
    public void The_low_bits_of_the_vector_are_the_lines()
    {
        _ = Initialized();
        Out(Master, 0x11);
        Out(Master + 1, 0x57);
        Out(Master + 1, 0x04);
        Out(Master + 1, 0x01);
        _pic.Pulse(2 + 1);
        Assert.Equal(0x53, _pic.Acknowledge());
    }

    [Fact]
    public void Initialization_forgets_edges_masks_priorities_and_what_is_in_service()
    {
        _ = Initialized();
        Out(Master, SetPriority | 3);
        Out(Master, SpecialMask);
        Out(Master, ReadInService);
        Out(Master + 1, 0xAA);
        _pic.Pulse(0);
        _ = _pic.Acknowledge();
        _pic.Pulse(2 + 2);
        _ = Initialized();
        Assert.Equal(0, In(Master)); // the request register again, with nothing in it
        Assert.Equal(0, In(Master + 1));
        Assert.Equal(0, Register(Master, ReadInService));
        Assert.False(_pic.Requested);
        _pic.Pulse(5);
        _pic.Pulse(1);
        Assert.Equal(0x21, _pic.Acknowledge());
        Assert.False(_pic.Requested);
    }

    [Fact]
    public void An_edge_triggered_line_that_is_up_has_to_fall_before_it_requests_after_initialization()
    {
        _pic.SetLine(4, true);
        _ = Initialized();
        Assert.False(_pic.Requested);
        _pic.SetLine(4, false);
        _pic.SetLine(4, true);
        Assert.Equal([0x24], Drain());
    }

    // ------------------------------------------------------------------------------------------ priorities

    [Fact]
    public void Lower_lines_come_first_and_the_slaves_stand_in_place_of_line_2()
    {
        _ = Initialized(icw4: 0x03, slaveIcw4: 0x03);
        for (int line = InterruptController.Lines - 1; line >= 0; line--)
        {
            if (line != 2)
            {
                _pic.Pulse(line);
            }
        }

        int[] slaves = [.. Enumerable.Range(0x28, 8)];
        Assert.Equal([0x20, 0x21, .. slaves, 0x23, 0x24, 0x25, 0x26, 0x27], Drain());
    }

    [Fact]
    public void A_line_in_service_holds_back_itself_and_lower_priorities_until_its_EOI()
    {
        _ = Initialized();
        _pic.Pulse(3);
        Assert.Equal(0x23, _pic.Acknowledge());
        _pic.Pulse(3);
        _pic.Pulse(5);
        Assert.False(_pic.Requested);
        _pic.Pulse(1);
        Assert.Equal(0x21, _pic.Acknowledge());
        Assert.Equal(0b1010, Register(Master, ReadInService));
        Assert.Equal(0b10_1000, Register(Master, ReadRequests));
        Out(Master, NonSpecificEoi); // of line 1, the highest
        Assert.Equal(0b1000, Register(Master, ReadInService));
        Assert.False(_pic.Requested);
        Out(Master, NonSpecificEoi);
        Assert.Equal(0x23, _pic.Acknowledge());
        Out(Master, SpecificEoi | 3);
        Assert.Equal(0x25, _pic.Acknowledge());
    }

    [Fact]
    public void An_EOI_with_nothing_in_service_and_the_command_that_means_nothing_do_nothing()
    {
        _ = Initialized();
        Out(Master, NonSpecificEoi);
        Out(Master, RotateOnNonSpecificEoi);
        Out(Master, 0x40);
        _pic.Pulse(0);
        _pic.Pulse(7);
        Assert.Equal(0x20, _pic.Acknowledge());
    }

    [Fact]
    public void Setting_the_lowest_priority_rotates_the_others()
    {
        _ = Initialized(icw4: 0x03);
        Out(Master, SetPriority | 4);
        foreach (int line in (int[])[0, 4, 5, 7])
        {
            _pic.Pulse(line);
        }

        Assert.Equal([0x25, 0x27, 0x20, 0x24], Drain());
    }

    [Fact]
    public void Rotation_on_EOI_makes_the_served_line_the_lowest()
    {
        _ = Initialized();
        _pic.Pulse(4);
        _ = _pic.Acknowledge();
        Out(Master, RotateOnNonSpecificEoi);
        _pic.Pulse(0);
        _pic.Pulse(4);
        _pic.Pulse(5);
        Assert.Equal(0x25, _pic.Acknowledge());
        Out(Master, RotateOnSpecificEoi | 5);
        Assert.Equal(0x20, _pic.Acknowledge()); // 6, 7, 0 … 5
        Out(Master, NonSpecificEoi);
        Assert.Equal(0x24, _pic.Acknowledge());
    }

    [Fact]
    public void Automatic_EOI_leaves_nothing_in_service_and_rotates_if_told_to()
    {
        _ = Initialized(icw4: 0x03);
        _pic.Pulse(1);
        _pic.Pulse(3);
        Assert.Equal(0x21, _pic.Acknowledge());
        Assert.Equal(0, Register(Master, ReadInService));
        Out(Master, RotateOnAutomaticEoi);
        Assert.Equal(0x23, _pic.Acknowledge());
        _pic.Pulse(1);
        _pic.Pulse(4);
        Assert.Equal([0x24, 0x21], Drain());
        Out(Master, StopRotating); // the lowest is still line 1
        foreach (int line in (int[])[0, 1, 3])
        {
            _pic.Pulse(line);
        }

        Assert.Equal([0x23, 0x20, 0x21], Drain());
        _pic.Pulse(0);
        _pic.Pulse(3);
        Assert.Equal([0x23, 0x20], Drain());
    }

    // ------------------------------------------------------------------------------------------ masks

    [Fact]
    public void A_masked_request_waits()
    {
        _ = Initialized();
        Out(Master + 1, 0xEF);
        _pic.Pulse(3);
        Assert.False(_pic.Requested);
        Assert.True(_pic.IsPending(3));
        Assert.True(_pic.IsMasked(3));
        Assert.Equal(0x08, Register(Master, ReadRequests));
        Out(Master + 1, 0x00);
        Assert.Equal([0x23], Drain());
    }

    [Fact]
    public void Masking_line_2_masks_the_slave()
    {
        _ = Initialized();
        Out(Master + 1, 0x04);
        _pic.Pulse(12);
        Assert.False(_pic.Requested);
        Assert.True(_pic.IsMasked(12));
        Out(Master + 1, 0x00);
        Assert.False(_pic.IsMasked(12));
        Assert.Equal([0x2C], Drain());
    }

    [Fact]
    public void In_special_mask_mode_a_masked_line_in_service_holds_nothing_back_and_others_still_do()
    {
        _ = Initialized();
        _pic.Pulse(2 + 2);
        _ = _pic.Acknowledge();
        _pic.Pulse(6);
        Out(Master, SpecialMask);
        Assert.False(_pic.Requested); // line 4 is not masked
        Out(Master + 1, 0x10);
        Assert.Equal(0x26, _pic.Acknowledge());
        _pic.Pulse(7);
        Assert.False(_pic.Requested); // behind line 6
        Out(Master, NonSpecificEoi); // of line 6: the masked one is not seen
        Assert.Equal(0x10, Register(Master, ReadInService));
        Assert.Equal(0x27, _pic.Acknowledge());
        Out(Master, SpecificEoi | 7);
        Out(Master, NoSpecialMask);
        _pic.Pulse(5);
        Assert.False(_pic.Requested);
        Out(Master, NonSpecificEoi);
        Assert.Equal(0x25, _pic.Acknowledge());
    }

    // ------------------------------------------------------------------------------------------ edge and level

    [Fact]
    public void An_edge_counts_once_however_long_the_line_stays_up()
    {
        _ = Initialized();
        _pic.SetLine(3, true);
        _pic.SetLine(3, true);
        Assert.Equal(0x23, _pic.Acknowledge());
        Out(Master, NonSpecificEoi);
        Assert.False(_pic.Requested);
        Assert.Equal(1, _pic.Requests[3]);
    }

    [Fact]
    public void A_request_whose_line_falls_before_it_is_taken_is_gone()
    {
        _ = Initialized();
        _pic.SetLine(3, true);
        _pic.SetLine(3, false);
        Assert.False(_pic.Requested);
        Assert.False(_pic.IsPending(3));
    }

    [Fact]
    public void A_pulse_stays_until_it_is_taken()
    {
        _ = Initialized();
        _pic.Pulse(3);
        Assert.True(_pic.IsPending(3));
        Assert.Equal(0x23, _pic.Acknowledge());
        Out(Master, NonSpecificEoi);
        Assert.False(_pic.Requested);
    }

    [Fact]
    public void A_level_requests_for_as_long_as_it_is_up()
    {
        _ = Initialized(icw1: 0x19);
        _pic.SetLine(3, true);
        Assert.Equal(0x23, _pic.Acknowledge());
        Assert.False(_pic.Requested);
        Out(Master, NonSpecificEoi);
        Assert.Equal(0x23, _pic.Acknowledge());
        _pic.SetLine(3, false);
        Out(Master, NonSpecificEoi);
        Assert.False(_pic.Requested);
    }

    [Fact]
    public void A_level_that_is_up_at_initialization_requests_at_once()
    {
        _pic.SetLine(3, true);
        _ = Initialized(icw1: 0x19);
        Assert.Equal(0x23, _pic.Acknowledge());
    }

    // ------------------------------------------------------------------------------------------ two chips

    [Fact]
    public void An_interrupt_of_the_slave_takes_an_EOI_at_both()
    {
        _ = Initialized();
        _pic.Pulse(10);
        Assert.Equal(0x2A, _pic.Acknowledge());
        Assert.Equal(0x04, Register(Master, ReadInService));
        Assert.Equal(0x04, Register(Slave, ReadInService));
        _pic.Pulse(9); // higher at the slave, held back at the master
        Assert.False(_pic.Requested);
        Out(Slave, NonSpecificEoi);
        Assert.False(_pic.Requested);
        Out(Master, NonSpecificEoi);
        Assert.Equal(0x29, _pic.Acknowledge());
    }

    [Fact]
    public void In_special_fully_nested_mode_a_higher_line_of_the_same_slave_interrupts()
    {
        _ = Initialized(icw4: 0x11);
        _pic.Pulse(10);
        _ = _pic.Acknowledge();
        _pic.Pulse(3);
        _pic.Pulse(11);
        Assert.False(_pic.Requested); // lower than the slave, and lower within it
        _pic.Pulse(9);
        Assert.Equal(0x29, _pic.Acknowledge());
        Out(Slave, NonSpecificEoi);
        Assert.Equal(0x04, Register(Slave, ReadInService)); // others of the slave are left: no EOI to the master yet
        Out(Slave, NonSpecificEoi);
        Out(Master, NonSpecificEoi);
        Assert.Equal(0x2B, _pic.Acknowledge());
    }

    [Fact]
    public void A_slave_that_is_not_initialized_requests_nothing()
    {
        Out(Master, 0x11);
        Out(Master + 1, 0x20);
        Out(Master + 1, 0x04);
        Out(Master + 1, 0x01);
        _pic.Pulse(12);
        Assert.False(_pic.Requested);
    }

    // ------------------------------------------------------------------------------------------ spurious

    [Fact]
    public void An_acknowledge_cycle_without_a_request_gives_line_7_and_nothing_in_service()
    {
        _ = Initialized();
        Assert.Equal(0x27, _pic.Acknowledge());
        Assert.Equal(0, Register(Master, ReadInService));
        Assert.Equal((1, 0), (_pic.Spurious, _pic.Acknowledgements[7]));
        _pic.Pulse(7);
        Assert.Equal(0x27, _pic.Acknowledge());
        Assert.Equal(0x80, Register(Master, ReadInService)); // how a handler tells the two apart
    }

    [Fact]
    public void A_slave_that_has_nothing_left_when_it_is_acknowledged_gives_line_15_and_the_master_wants_an_EOI()
    {
        _ = Initialized();
        _pic.Pulse(12);
        Out(Slave, Poll); // the guest polls the slave: the read that takes the request is the cycle in between
        bool taken = false;
        _pic.Acknowledged = _ => taken = true;
        Assert.True(_pic.Requested);
        Assert.Equal(0x84, In(Slave));
        Assert.True(taken);
        Assert.False(_pic.Requested); // and so the CPU is not asked any more
        Assert.Equal(0, _pic.Spurious);
    }

    // ------------------------------------------------------------------------------------------ poll

    [Theory]
    [InlineData(Master)]
    [InlineData(Master + 1)]
    public void A_poll_takes_the_highest_request_at_either_port(int port)
    {
        int told = -1;
        _pic.Acknowledged = line => told = line;
        _ = Initialized();
        _pic.Pulse(5);
        _pic.Pulse(3);
        Out(Master, Poll);
        Assert.Equal(0x83, In(port));
        Assert.Equal(3, told);
        Assert.Equal(1, _pic.Acknowledgements[3]);
        Assert.Equal(0x08, Register(Master, ReadInService));
        Assert.Equal(0x20, Register(Master, ReadRequests)); // the command is over with one read
        Assert.False(_pic.Requested);
    }

    [Fact]
    public void A_poll_without_a_request_says_so()
    {
        _ = Initialized();
        Out(Master, Poll);
        Assert.Equal(0, In(Master) & 0x80);
        Assert.Equal(0, _pic.Spurious);
    }

    [Fact]
    public void A_slaves_request_is_polled_at_both()
    {
        int told = -1;
        _pic.Acknowledged = line => told = line;
        _ = Initialized();
        _pic.Pulse(13);
        Out(Master, Poll);
        Assert.Equal(0x82, In(Master));
        Assert.Equal(-1, told);
        Out(Slave, Poll);
        Assert.Equal(0x85, In(Slave));
        Assert.Equal(13, told);
    }

    // ------------------------------------------------------------------------------------------ hostile

    [Fact]
    public void Wide_accesses_see_ones_above_the_eight_bits_and_write_the_low_byte()
    {
        _ = Initialized();
        _pic.Write(Master + 1, 4, 0xFFFF_FF55);
        Assert.Equal(0x55u, _pic.Read(Master + 1, 1));
        Assert.Equal(0xFF55u, _pic.Read(Master + 1, 2));
        Assert.Equal(0xFFFF_FF55u, _pic.Read(Master + 1, 4));
    }

    [Fact]
    public void No_sequence_of_writes_breaks_it()
    {
        var random = new Random(1);
        ushort[] ports = [Master, Master + 1, Slave, Slave + 1];
        for (int i = 0; i < 200_000; i++)
        {
            int line = random.Next(16);
            switch (random.Next(6))
            {
                case 0 when line != 2:
                    _pic.Pulse(line);
                    break;
                case 1 when line != 2:
                    _pic.SetLine(line, random.Next(2) == 0);
                    break;
                case 2:
                    _ = _pic.Read(ports[random.Next(4)], 1 << random.Next(3));
                    break;
                case 3 when _pic.Requested:
                    _ = _pic.Acknowledge();
                    break;
                default:
                    _pic.Write(ports[random.Next(4)], 1, (uint)random.Next(256));
                    break;
            }
        }

        // What INTR promises there is.
        Assert.Equal(0, _pic.Spurious);
        _ = Initialized(icw4: 0x03, slaveIcw4: 0x03);
        _ = Drain();
        _pic.SetLine(1, false);
        _pic.Pulse(1);
        Assert.Equal([0x21], Drain());
    }
}
