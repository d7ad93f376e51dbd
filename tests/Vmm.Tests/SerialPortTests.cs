using VirtBench.Vmm.Devices;

namespace VirtBench.Vmm.Tests;

/// <summary>The UART as drivers probe and use it.</summary>
public sealed class SerialPortTests
{
    private readonly SerialPort _serial = new();
    private readonly List<byte> _sent = [];

    public SerialPortTests() => _serial.Transmitted = _sent.Add;

    private byte In(int register) => (byte)_serial.Read((ushort)(SerialPort.FirstPort + register), 1);

    private void Out(int register, int value) =>
        _serial.Write((ushort)(SerialPort.FirstPort + register), 1, (byte)value);

    [Fact]
    public void Bytes_are_sent_and_the_transmitter_is_always_empty()
    {
        Out(0, 'h');
        Assert.Equal(0x60, In(5));
        Out(0, 'i');
        Assert.Equal("hi"u8, [.. _sent]);
    }

    [Fact]
    public void The_divisor_latch_hides_data_and_interrupt_enable()
    {
        Out(1, 0x0F);
        Out(3, 0x83);
        Out(0, 0x34);
        Out(1, 0x12);
        Assert.Equal((0x34, 0x12), (In(0), In(1)));
        Out(3, 0x03);
        Assert.Equal((0x03, 0x0F, 0x00), (In(3), In(1), In(0)));
        Assert.Empty(_sent);
    }

    [Fact]
    public void Scratch_and_interrupt_enable_are_probed_like_a_driver_does()
    {
        Out(7, 0xA5);
        Assert.Equal(0xA5, In(7));
        Out(1, 0xFF);
        Assert.Equal(0x0F, In(1)); // the upper four bits are wired to 0
        Out(1, 0);
        Out(2, 0x01);
        Assert.Equal(0xC1, In(2)); // a 16550A with working FIFOs, nothing pending
        Out(2, 0x00);
        Assert.Equal(0x01, In(2));
    }

    [Fact]
    public void The_transmitter_interrupt_is_raised_by_enabling_and_acknowledged_by_reading()
    {
        Out(1, 0x02);
        Assert.Equal(0x02, In(2));
        Assert.Equal(0x01, In(2));
        Out(0, 'x');
        Assert.Equal(0x02, In(2));
    }

    [Fact]
    public void Loopback_brings_bytes_and_modem_lines_back_and_sends_nothing()
    {
        Assert.Equal(0xB0, In(6));
        Out(4, 0x10 | 0x0A); // RTS and OUT2
        Assert.Equal(0x90, In(6) & 0xF0);
        Out(0, 0xAE);
        Assert.Equal(0x61, In(5));
        Out(1, 0x01);
        Assert.Equal(0x04, In(2));
        Assert.Equal(0xAE, In(0));
        Assert.Equal(0x60, In(5));
        Assert.Empty(_sent);
    }

    [Fact]
    public void Loopback_overruns_without_a_fifo_at_two_bytes_and_with_one_at_seventeen()
    {
        Out(4, 0x10);
        Out(0, 1);
        Out(0, 2);
        Assert.Equal(0x63, In(5));
        Assert.Equal(0x61, In(5)); // reading clears the overrun
        Assert.Equal(1, In(0));
        Out(2, 0x07);
        for (int i = 0; i < 17; i++)
        {
            Out(0, i);
        }

        Assert.Equal(0x63, In(5));
        Assert.Equal(Enumerable.Range(0, 16), Enumerable.Range(0, 16).Select(_ => (int)In(0)));
        Assert.Equal(0x60, In(5));
    }

    [Fact]
    public void Wider_accesses_see_one_byte()
    {
        _serial.Write(SerialPort.FirstPort, 4, 0x4241);
        Assert.Equal("A"u8, [.. _sent]);
        Assert.Equal(0xFFFF_FF60u, _serial.Read(SerialPort.FirstPort + 5, 4));
    }

    // ------------------------------------------------------------------------------------------ the interrupt line

    private readonly List<bool> _line = [];

    private void Listen() => _serial.InterruptChanged = _line.Add;

    [Fact]
    public void The_line_follows_the_transmitter_with_an_edge_for_each_byte()
    {
        Listen();
        Out(4, 0x08);
        Out(1, 0x02);
        Assert.Equal([true], _line);
        Assert.Equal(0x02, In(2));
        Assert.Equal([true, false], _line);
        Out(0, 'a');
        Out(0, 'b');
        Assert.Equal([true, false, true, false, true], _line);
        Out(1, 0);
        Assert.False(_line[^1]);
    }

    [Fact]
    public void Out2_is_the_gate_of_the_line()
    {
        Listen();
        Out(1, 0x02);
        Assert.Empty(_line);
        Out(4, 0x08);
        Assert.Equal([true], _line);
        Out(4, 0x00);
        Assert.Equal([true, false], _line);
        Out(4, 0x18); // loopback disconnects it
        Assert.Equal([true, false], _line);
    }

    [Fact]
    public void What_was_received_in_loopback_requests_when_that_is_over_until_it_is_read()
    {
        Listen();
        Out(2, 0x01);
        Out(4, 0x18);
        Out(1, 0x01);
        Out(0, 'x');
        Out(0, 'y');
        Assert.Empty(_line);
        Assert.Equal(0xC4, In(2));
        Out(4, 0x08);
        Assert.Equal([true], _line);
        Assert.Equal(('x', true), ((char)In(0), _line[^1]));
        Assert.Equal(('y', false), ((char)In(0), _line[^1]));
    }

    [Fact]
    public void The_causes_of_an_interrupt_have_their_order()
    {
        Out(4, 0x10);
        Out(1, 0x0F);
        Out(0, '1');
        Out(0, '2'); // overrun
        Out(4, 0x13); // modem lines change
        Assert.Equal(0x06, In(2));
        Assert.Equal(0x63, In(5));
        Assert.Equal(0x04, In(2));
        Assert.Equal('1', (char)In(0));
        Assert.Equal(0x02, In(2)); // which acknowledges it
        Assert.Equal(0x00, In(2));
        _ = In(6);
        Assert.Equal(0x01, In(2));
    }
}
