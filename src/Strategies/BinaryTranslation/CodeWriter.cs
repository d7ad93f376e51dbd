using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using VirtBench.Strategies.Carrier;
using VirtBench.Vmm.Cpu;

namespace VirtBench.Strategies.BinaryTranslation;

/// <summary>
/// Writes machine code into a code cache: the few instruction forms that translation inserts, none of which changes flags unless its name
/// says so. Encodings: Intel SDM vol. 2, chapter 2 (formats) and the instructions' own pages. Registers are numbered in encoding order.
/// </summary>
internal unsafe struct CodeWriter(byte* cache, int offset)
{
    private readonly byte* _cache = cache;

    /// <summary>Bytes from the cache's start to where the next instruction goes.</summary>
    public int Offset { get; set; } = offset;

    /// <summary>Where the next instruction goes, in the carrier.</summary>
    public readonly ulong Address => CarrierLayout.CodeCache + (ulong)Offset;

    /// <summary>Offset of a field in the control page.</summary>
    public static int Field(string name) => (int)Marshal.OffsetOf<ControlPage>(name);

    /// <summary>One byte.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void Byte(byte value) => _cache[Offset++] = value;

    /// <summary>Four bytes, little-endian.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void Int32(int value)
    {
        *(int*)(_cache + Offset) = value;
        Offset += sizeof(int);
    }

    /// <summary>Eight bytes, little-endian.</summary>
    public void Int64(ulong value)
    {
        *(ulong*)(_cache + Offset) = value;
        Offset += sizeof(ulong);
    }

    /// <summary>Bytes as they are.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void Bytes(byte* source, int length)
    {
        // Two overlapping halves would do, but most instructions have up to eight bytes.
        if (length <= sizeof(ulong) && ((nuint)source & 0xFFF) <= 0xFF8)
        {
            *(ulong*)(_cache + Offset) = *(ulong*)source;
        }
        else
        {
            Buffer.MemoryCopy(source, _cache + Offset, length, length);
        }

        Offset += length;
    }

    /// <inheritdoc cref="Bytes(byte*, int)"/>
    public void Bytes(params ReadOnlySpan<byte> bytes)
    {
        foreach (byte value in bytes)
        {
            Byte(value);
        }
    }

    /// <summary>The displacement by which an instruction that ends so many bytes later reaches a field of the control page.</summary>
    private void FieldDisplacement(int field, int bytesBehind) =>
        Int32((int)(long)(CarrierLayout.Control + (ulong)field - (Address + sizeof(int) + (ulong)bytesBehind)));

    // REX.W, with R for the register: opcode /reg, [RIP + displacement].
    private void WithField(byte rex, byte opcode, int register, int field, int bytesBehind = 0)
    {
        byte prefix = (byte)(rex | (register >= 8 ? 4 : 0));
        if (prefix != 0)
        {
            Byte((byte)(0x40 | prefix));
        }

        Byte(opcode);
        Byte((byte)(((register & 7) << 3) | 5));
        FieldDisplacement(field, bytesBehind);
    }

    /// <summary>MOV qword [field], register.</summary>
    public void Store(int field, int register) => WithField(8, 0x89, register, field);

    /// <summary>MOV dword [field], register.</summary>
    public void Store32(int field, int register) => WithField(0, 0x89, register, field);

    /// <summary>MOV register, qword [field].</summary>
    public void Load(int register, int field) => WithField(8, 0x8B, register, field);

    /// <summary>MOV register, dword [field]: clears the upper half.</summary>
    public void Load32(int register, int field) => WithField(0, 0x8B, register, field);

    /// <summary>MOV register's low half-word, word [field].</summary>
    public void Load16(int register, int field)
    {
        Byte(0x66);
        WithField(0, 0x8B, register, field);
    }

    /// <summary>MOV byte [field], immediate.</summary>
    public void StoreByte(int field, byte value)
    {
        WithField(0, 0xC6, 0, field, 1);
        Byte(value);
    }

    /// <summary>MOV dword [field], immediate.</summary>
    public void StoreInt32(int field, int value)
    {
        WithField(0, 0xC7, 0, field, sizeof(int));
        Int32(value);
    }

    /// <summary>MOV byte [field], CH.</summary>
    public void StoreCh(int field) => WithField(0, 0x88, 5, field);

    /// <summary>MOVZX ecx, byte [field].</summary>
    public void LoadByteIntoRcx(int field)
    {
        Bytes(0x0F, 0xB6, 0x0D);
        FieldDisplacement(field, 0);
    }

    /// <summary>CMP byte [field], 0. Changes flags.</summary>
    public void CompareByteWithZero(int field)
    {
        Bytes(0x80, 0x3D);
        FieldDisplacement(field, 1);
        Byte(0);
    }

    /// <summary>POP qword [field].</summary>
    public void Pop(int field)
    {
        Bytes(0x8F, 0x05);
        FieldDisplacement(field, 0);
    }

    /// <summary>CMP rcx, [field]. Changes flags.</summary>
    public void CompareRcx(int field) => WithField(8, 0x3B, Gpr.Rcx, field);

    /// <summary>OR rcx, [field]. Changes flags.</summary>
    public void OrIntoRcx(int field) => WithField(8, 0x0B, Gpr.Rcx, field);

    /// <summary>AND byte [field], immediate. Changes flags.</summary>
    public void AndByte(int field, byte value)
    {
        WithField(0, 0x80, 4, field, 1);
        Byte(value);
    }

    /// <summary>PUSH qword [field].</summary>
    public void Push(int field)
    {
        Bytes(0xFF, 0x35);
        FieldDisplacement(field, 0);
    }

    /// <summary>MOV register, register.</summary>
    public void Move(int destination, int source) =>
        Bytes(
            (byte)(0x48 | (source >= 8 ? 4 : 0) | (destination >= 8 ? 1 : 0)),
            0x89,
            (byte)(0xC0 | ((source & 7) << 3) | (destination & 7))
        );

    /// <summary>MOV register, immediate: the shortest form.</summary>
    public void MoveImmediate(int register, ulong value)
    {
        byte b = (byte)(register >= 8 ? 1 : 0);
        if (value <= uint.MaxValue)
        {
            if (b != 0)
            {
                Byte((byte)(0x40 | b));
            }

            Byte((byte)(0xB8 | (register & 7)));
            Int32((int)(uint)value);
        }
        else if ((long)value == (int)value)
        {
            Bytes((byte)(0x48 | b), 0xC7, (byte)(0xC0 | (register & 7)));
            Int32((int)value);
        }
        else
        {
            Bytes((byte)(0x48 | b), (byte)(0xB8 | (register & 7)));
            Int64(value);
        }
    }

    /// <summary>LEA register, [base + displacement].</summary>
    public void Lea(int register, int baseRegister, int displacement)
    {
        Bytes(
            (byte)(0x48 | (register >= 8 ? 4 : 0) | (baseRegister >= 8 ? 1 : 0)),
            0x8D,
            (byte)(0x80 | ((register & 7) << 3) | (baseRegister & 7))
        );
        if ((baseRegister & 7) == 4)
        {
            Byte(0x24);
        }

        Int32(displacement);
    }

    /// <summary>LEA rsp, [rsp + displacement]: the shortest form.</summary>
    public void LeaStack(int displacement)
    {
        if (displacement == (sbyte)displacement)
        {
            Bytes(0x48, 0x8D, 0x64, 0x24, (byte)displacement);
        }
        else
        {
            Lea(4, 4, displacement);
        }
    }

    /// <summary>LEA rcx, [rcx + r11].</summary>
    public void AddR11ToRcx() => Bytes(0x4A, 0x8D, 0x0C, 0x19);

    /// <summary>LEA rcx, [rcx + rax + displacement].</summary>
    public void AddRaxToRcx(int displacement)
    {
        Bytes(0x48, 0x8D, 0x8C, 0x01);
        Int32(displacement);
    }

    /// <summary>MOV rcx, [rsp].</summary>
    public void LoadTopOfStackIntoRcx() => Bytes(0x48, 0x8B, 0x0C, 0x24);

    /// <summary>MOV [rsp], rcx.</summary>
    public void StoreRcxAtTopOfStack() => Bytes(0x48, 0x89, 0x0C, 0x24);

    /// <summary>MOV r11w, cx.</summary>
    public void MoveCxIntoR11() => Bytes(0x66, 0x41, 0x89, 0xCB);

    /// <summary>MOV r11, [r11 * 8].</summary>
    public void LoadR11TimesEight() => Bytes(0x4E, 0x8B, 0x1C, 0xDD, 0, 0, 0, 0);

    /// <summary>JMP r11.</summary>
    public void JumpR11() => Bytes(0x41, 0xFF, 0xE3);

    /// <summary>PUSH r11.</summary>
    public void PushR11() => Bytes(0x41, 0x53);

    /// <summary>JRCXZ over so many bytes.</summary>
    public void JumpIfRcxIsZero(int over) => Bytes(0xE3, (byte)over);

    /// <summary>JMP to an address in the carrier.</summary>
    /// <returns>Offset of the displacement, for <see cref="Patch"/>.</returns>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public int Jump(ulong target)
    {
        Byte(0xE9);
        Int32((int)(long)(target - (Address + sizeof(int))));
        return Offset - sizeof(int);
    }

    /// <summary>Jcc to an address in the carrier.</summary>
    /// <returns>Offset of the displacement, for <see cref="Patch"/>.</returns>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public int JumpIf(int condition, ulong target)
    {
        Byte(0x0F);
        Byte((byte)(0x80 | condition));
        Int32((int)(long)(target - (Address + sizeof(int))));
        return Offset - sizeof(int);
    }

    /// <summary>Makes a jump lead to the next instruction to be written.</summary>
    public readonly void PatchToHere(int displacement) => Patch(_cache, displacement, Address);

    /// <summary>Makes a one-byte jump displacement lead to the next instruction to be written.</summary>
    public readonly void PatchShortToHere(int displacement) =>
        _cache[displacement] = checked((byte)(sbyte)(Offset - (displacement + 1)));

    /// <summary>Makes a jump lead somewhere else.</summary>
    /// <param name="cache">The code cache.</param>
    /// <param name="displacement">Offset of the jump's displacement.</param>
    /// <param name="target">Address in the carrier.</param>
    public static void Patch(byte* cache, int displacement, ulong target) =>
        *(int*)(cache + displacement) = (int)((long)(target - CarrierLayout.CodeCache) - (displacement + sizeof(int)));
}
