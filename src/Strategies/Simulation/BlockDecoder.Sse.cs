using Iced.Intel;
using Handler = nint;

namespace VirtBench.Strategies.Simulation;

/// <summary>SSE and SSE2.</summary>
internal sealed unsafe partial class BlockDecoder
{
    private static bool IsMmx(in Instruction i)
    {
        for (int n = 0; n < i.OpCount; n++)
        {
            if (i.GetOpKind(n) == OpKind.Register && i.GetOpRegister(n).IsMM())
            {
                return true;
            }
        }

        return false;
    }

    private bool Vector<TVector>(Op* op, in Instruction i)
        where TVector : struct, IVector
    {
        op->A = Offset(i.Op0Register);
        if (IsMemory(i, 1))
        {
            SetMemory(op, i);
            return Set(
                op,
                i.MemorySize.GetSize() switch
                {
                    4 => H(&SseHandlers.VMn<TVector, uint>),
                    8 => H(&SseHandlers.VMn<TVector, ulong>),
                    _ => H(&SseHandlers.VM<TVector>),
                }
            );
        }

        op->B = Offset(i.Op1Register);
        return Set(op, H(&SseHandlers.VV<TVector>));
    }

    private bool VectorImmediate<TVector>(Op* op, in Instruction i)
        where TVector : struct, IVectorImmediate
    {
        op->A = Offset(i.Op0Register);
        op->Immediate = i.GetImmediate(2);
        if (IsMemory(i, 1))
        {
            SetMemory(op, i);
            return Set(
                op,
                i.MemorySize.GetSize() switch
                {
                    4 => H(&SseHandlers.VMnI<TVector, uint>),
                    8 => H(&SseHandlers.VMnI<TVector, ulong>),
                    _ => H(&SseHandlers.VMI<TVector>),
                }
            );
        }

        op->B = Offset(i.Op1Register);
        return Set(op, H(&SseHandlers.VVI<TVector>));
    }

    private bool Shift<TVector>(Op* op, in Instruction i)
        where TVector : struct, IVector
    {
        if (i.Op1Kind != OpKind.Immediate8)
        {
            return Vector<TVector>(op, i);
        }

        op->A = Offset(i.Op0Register);
        op->Immediate = i.Immediate8;
        return Set(op, H(&SseHandlers.VI<TVector>));
    }

    /// <summary>A move of a whole register.</summary>
    private bool Whole(Op* op, in Instruction i, bool aligned)
    {
        if (IsMemory(i, 0))
        {
            op->A = Offset(i.Op1Register);
            SetMemory(op, i);
            return Set(op, aligned ? H(&SseHandlers.StoreAligned) : H(&SseHandlers.Store));
        }

        op->A = Offset(i.Op0Register);
        if (IsMemory(i, 1))
        {
            SetMemory(op, i);
            return Set(op, aligned ? H(&SseHandlers.LoadAligned) : H(&SseHandlers.Load));
        }

        op->B = Offset(i.Op1Register);
        return Set(op, H(&SseHandlers.Move));
    }

    /// <summary>MOVSS, MOVSD, MOVD and MOVQ between any two of memory, general and XMM register.</summary>
    private bool Scalar(Op* op, in Instruction i, int size, Handler betweenVectors)
    {
        if (IsMemory(i, 0))
        {
            op->A = Offset(i.Op1Register);
            SetMemory(op, i);
            return Set(op, MovMR(size));
        }

        op->A = Offset(i.Op0Register);
        if (IsMemory(i, 1))
        {
            SetMemory(op, i);
            return Set(op, size == 4 ? H(&SseHandlers.LoadScalar<uint>) : H(&SseHandlers.LoadScalar<ulong>));
        }

        op->B = Offset(i.Op1Register);
        if (i.Op0Register.IsGPR())
        {
            return Set(op, MovRR(size));
        }

        return Set(
            op,
            i.Op1Register.IsXMM() ? betweenVectors
                : size == 4 ? H(&SseHandlers.FromGeneral<uint>)
                : H(&SseHandlers.FromGeneral<ulong>)
        );
    }

    /// <summary>MOVLPS, MOVHPS, MOVLPD and MOVHPD: half is 0 or 8.</summary>
    private bool Half(Op* op, in Instruction i, int half)
    {
        SetMemory(op, i);
        if (IsMemory(i, 0))
        {
            op->A = (ushort)(Offset(i.Op1Register) + half);
            return Set(op, MovMR(8));
        }

        op->A = (ushort)(Offset(i.Op0Register) + half);
        return Set(op, H(&SseHandlers.LoadHalf));
    }

    private bool ToGeneral(Op* op, in Instruction i, Handler handler)
    {
        op->A = Offset(i.Op0Register);
        op->B = Offset(i.Op1Register);
        return Set(op, handler);
    }

    private bool ConvertFrom(Op* op, in Instruction i, bool single)
    {
        op->A = Offset(i.Op0Register);
        bool wide = SizeOf(i, 1) == 8;
        if (IsMemory(i, 1))
        {
            SetMemory(op, i);
            return Set(
                op,
                (single, wide) switch
                {
                    (true, false) => H(&SseHandlers.ConvertFromM<float, uint>),
                    (true, true) => H(&SseHandlers.ConvertFromM<float, ulong>),
                    (false, false) => H(&SseHandlers.ConvertFromM<double, uint>),
                    _ => H(&SseHandlers.ConvertFromM<double, ulong>),
                }
            );
        }

        op->B = Offset(i.Op1Register);
        return Set(
            op,
            (single, wide) switch
            {
                (true, false) => H(&SseHandlers.ConvertFromR<float, uint>),
                (true, true) => H(&SseHandlers.ConvertFromR<float, ulong>),
                (false, false) => H(&SseHandlers.ConvertFromR<double, uint>),
                _ => H(&SseHandlers.ConvertFromR<double, ulong>),
            }
        );
    }

    private bool ConvertTo(Op* op, in Instruction i, bool single, bool truncate)
    {
        op->A = Offset(i.Op0Register);
        op->Immediate = truncate ? 1UL : 0;
        bool wide = i.Op0Register.IsGPR64();
        if (IsMemory(i, 1))
        {
            SetMemory(op, i);
            return Set(
                op,
                (single, wide) switch
                {
                    (true, false) => H(&SseHandlers.ConvertToM<float, uint>),
                    (true, true) => H(&SseHandlers.ConvertToM<float, ulong>),
                    (false, false) => H(&SseHandlers.ConvertToM<double, uint>),
                    _ => H(&SseHandlers.ConvertToM<double, ulong>),
                }
            );
        }

        op->B = Offset(i.Op1Register);
        return Set(
            op,
            (single, wide) switch
            {
                (true, false) => H(&SseHandlers.ConvertToV<float, uint>),
                (true, true) => H(&SseHandlers.ConvertToV<float, ulong>),
                (false, false) => H(&SseHandlers.ConvertToV<double, uint>),
                _ => H(&SseHandlers.ConvertToV<double, ulong>),
            }
        );
    }

    private bool CompareFlags(Op* op, in Instruction i, bool single)
    {
        op->A = Offset(i.Op0Register);
        if (IsMemory(i, 1))
        {
            SetMemory(op, i);
            return Set(op, single ? H(&SseHandlers.CompareM<float>) : H(&SseHandlers.CompareM<double>));
        }

        op->B = Offset(i.Op1Register);
        return Set(op, single ? H(&SseHandlers.CompareV<float>) : H(&SseHandlers.CompareV<double>));
    }

    private bool Pextrw(Op* op, in Instruction i)
    {
        if (i.Op0Kind != OpKind.Register || i.Code is not (Code.Pextrw_r32_xmm_imm8 or Code.Pextrw_r64_xmm_imm8))
        {
            return false; // the form to memory is SSE4.1
        }

        op->A = Offset(i.Op0Register);
        op->B = (ushort)(Offset(i.Op1Register) + (2 * (i.Immediate8 & 7)));
        return Set(op, H(&SseHandlers.Pextrw));
    }

    private bool Pinsrw(Op* op, in Instruction i)
    {
        op->A = (ushort)(Offset(i.Op0Register) + (2 * (i.Immediate8 & 7)));
        if (IsMemory(i, 1))
        {
            SetMemory(op, i);
            return Set(op, MovRM(2));
        }

        op->B = Offset(i.Op1Register);
        return Set(op, H(&SseHandlers.PinsrwR));
    }

    private bool MemoryOnly(Op* op, in Instruction i, Handler handler)
    {
        SetMemory(op, i);
        return Set(op, handler);
    }

    private bool Maskmovdqu(Op* op, in Instruction i)
    {
        if (i.Op0Kind != OpKind.MemorySegRDI)
        {
            return false;
        }

        _mayLeave = true;
        op->A = Offset(i.Op1Register);
        op->B = Offset(i.Op2Register);
        op->Base = SegmentBase(i);
        return Set(op, H(&SseHandlers.Maskmovdqu));
    }

    private bool TrySse(Op* op, in Instruction i)
    {
        if (IsMmx(i))
        {
            return false;
        }

        switch (i.Mnemonic)
        {
            case Mnemonic.Paddb:
                return Vector<Paddb>(op, i);
            case Mnemonic.Paddw:
                return Vector<Paddw>(op, i);
            case Mnemonic.Paddd:
                return Vector<Paddd>(op, i);
            case Mnemonic.Paddq:
                return Vector<Paddq>(op, i);
            case Mnemonic.Psubb:
                return Vector<Psubb>(op, i);
            case Mnemonic.Psubw:
                return Vector<Psubw>(op, i);
            case Mnemonic.Psubd:
                return Vector<Psubd>(op, i);
            case Mnemonic.Psubq:
                return Vector<Psubq>(op, i);
            case Mnemonic.Paddsb:
                return Vector<Paddsb>(op, i);
            case Mnemonic.Paddsw:
                return Vector<Paddsw>(op, i);
            case Mnemonic.Paddusb:
                return Vector<Paddusb>(op, i);
            case Mnemonic.Paddusw:
                return Vector<Paddusw>(op, i);
            case Mnemonic.Psubsb:
                return Vector<Psubsb>(op, i);
            case Mnemonic.Psubsw:
                return Vector<Psubsw>(op, i);
            case Mnemonic.Psubusb:
                return Vector<Psubusb>(op, i);
            case Mnemonic.Psubusw:
                return Vector<Psubusw>(op, i);
            case Mnemonic.Pcmpeqb:
                return Vector<Pcmpeqb>(op, i);
            case Mnemonic.Pcmpeqw:
                return Vector<Pcmpeqw>(op, i);
            case Mnemonic.Pcmpeqd:
                return Vector<Pcmpeqd>(op, i);
            case Mnemonic.Pcmpgtb:
                return Vector<Pcmpgtb>(op, i);
            case Mnemonic.Pcmpgtw:
                return Vector<Pcmpgtw>(op, i);
            case Mnemonic.Pcmpgtd:
                return Vector<Pcmpgtd>(op, i);
            case Mnemonic.Pmaxub:
                return Vector<Pmaxub>(op, i);
            case Mnemonic.Pminub:
                return Vector<Pminub>(op, i);
            case Mnemonic.Pmaxsw:
                return Vector<Pmaxsw>(op, i);
            case Mnemonic.Pminsw:
                return Vector<Pminsw>(op, i);
            case Mnemonic.Pand:
                return Vector<Pand>(op, i);
            case Mnemonic.Por:
                return Vector<Por>(op, i);
            case Mnemonic.Pxor:
                return Vector<Pxor>(op, i);
            case Mnemonic.Pandn:
                return Vector<Pandn>(op, i);
            case Mnemonic.Pmullw:
                return Vector<Pmullw>(op, i);
            case Mnemonic.Pmulhw:
                return Vector<Pmulhw>(op, i);
            case Mnemonic.Pmulhuw:
                return Vector<Pmulhuw>(op, i);
            case Mnemonic.Pmuludq:
                return Vector<Pmuludq>(op, i);
            case Mnemonic.Pmaddwd:
                return Vector<Pmaddwd>(op, i);
            case Mnemonic.Psadbw:
                return Vector<Psadbw>(op, i);
            case Mnemonic.Pavgb:
                return Vector<Pavgb>(op, i);
            case Mnemonic.Pavgw:
                return Vector<Pavgw>(op, i);
            case Mnemonic.Punpcklbw:
                return Vector<Punpcklbw>(op, i);
            case Mnemonic.Punpckhbw:
                return Vector<Punpckhbw>(op, i);
            case Mnemonic.Punpcklwd:
                return Vector<Punpcklwd>(op, i);
            case Mnemonic.Punpckhwd:
                return Vector<Punpckhwd>(op, i);
            case Mnemonic.Punpckldq:
                return Vector<Punpckldq>(op, i);
            case Mnemonic.Punpckhdq:
                return Vector<Punpckhdq>(op, i);
            case Mnemonic.Punpcklqdq:
                return Vector<Punpcklqdq>(op, i);
            case Mnemonic.Punpckhqdq:
                return Vector<Punpckhqdq>(op, i);
            case Mnemonic.Packsswb:
                return Vector<Packsswb>(op, i);
            case Mnemonic.Packuswb:
                return Vector<Packuswb>(op, i);
            case Mnemonic.Packssdw:
                return Vector<Packssdw>(op, i);
            case Mnemonic.Rcpps:
                return Vector<Rcpps>(op, i);
            case Mnemonic.Rcpss:
                return Vector<Rcpss>(op, i);
            case Mnemonic.Rsqrtps:
                return Vector<Rsqrtps>(op, i);
            case Mnemonic.Rsqrtss:
                return Vector<Rsqrtss>(op, i);
            case Mnemonic.Cvtdq2ps:
                return Vector<Cvtdq2ps>(op, i);
            case Mnemonic.Cvtps2dq:
                return Vector<Cvtps2dq>(op, i);
            case Mnemonic.Cvttps2dq:
                return Vector<Cvttps2dq>(op, i);
            case Mnemonic.Cvtdq2pd:
                return Vector<Cvtdq2pd>(op, i);
            case Mnemonic.Cvtpd2dq:
                return Vector<Cvtpd2dq>(op, i);
            case Mnemonic.Cvttpd2dq:
                return Vector<Cvttpd2dq>(op, i);
            case Mnemonic.Cvtps2pd:
                return Vector<Cvtps2pd>(op, i);
            case Mnemonic.Cvtpd2ps:
                return Vector<Cvtpd2ps>(op, i);
            case Mnemonic.Cvtss2sd:
                return Vector<Cvtss2sd>(op, i);
            case Mnemonic.Cvtsd2ss:
                return Vector<Cvtsd2ss>(op, i);
            case Mnemonic.Movhlps:
                return Vector<Movhlps>(op, i);
            case Mnemonic.Movlhps:
                return Vector<Movlhps>(op, i);
            case Mnemonic.Andps:
                return Vector<Pand>(op, i);
            case Mnemonic.Andpd:
                return Vector<Pand>(op, i);
            case Mnemonic.Andnps:
                return Vector<Pandn>(op, i);
            case Mnemonic.Andnpd:
                return Vector<Pandn>(op, i);
            case Mnemonic.Orps:
                return Vector<Por>(op, i);
            case Mnemonic.Orpd:
                return Vector<Por>(op, i);
            case Mnemonic.Xorps:
                return Vector<Pxor>(op, i);
            case Mnemonic.Xorpd:
                return Vector<Pxor>(op, i);
            case Mnemonic.Unpcklps:
                return Vector<Punpckldq>(op, i);
            case Mnemonic.Unpckhps:
                return Vector<Punpckhdq>(op, i);
            case Mnemonic.Unpcklpd:
                return Vector<Punpcklqdq>(op, i);
            case Mnemonic.Unpckhpd:
                return Vector<Punpckhqdq>(op, i);
            case Mnemonic.Psllw:
                return Shift<Psllw>(op, i);
            case Mnemonic.Pslld:
                return Shift<Pslld>(op, i);
            case Mnemonic.Psllq:
                return Shift<Psllq>(op, i);
            case Mnemonic.Psrlw:
                return Shift<Psrlw>(op, i);
            case Mnemonic.Psrld:
                return Shift<Psrld>(op, i);
            case Mnemonic.Psrlq:
                return Shift<Psrlq>(op, i);
            case Mnemonic.Psraw:
                return Shift<Psraw>(op, i);
            case Mnemonic.Psrad:
                return Shift<Psrad>(op, i);
            case Mnemonic.Pslldq:
                return Shift<Pslldq>(op, i);
            case Mnemonic.Psrldq:
                return Shift<Psrldq>(op, i);
            case Mnemonic.Pshufd:
                return VectorImmediate<Pshufd>(op, i);
            case Mnemonic.Pshuflw:
                return VectorImmediate<Pshuflw>(op, i);
            case Mnemonic.Pshufhw:
                return VectorImmediate<Pshufhw>(op, i);
            case Mnemonic.Shufps:
                return VectorImmediate<Shufps>(op, i);
            case Mnemonic.Shufpd:
                return VectorImmediate<Shufpd>(op, i);
            case Mnemonic.Cmpps:
                return VectorImmediate<CompareSingle>(op, i);
            case Mnemonic.Cmppd:
                return VectorImmediate<CompareDouble>(op, i);
            case Mnemonic.Cmpss:
                return VectorImmediate<CompareScalarSingle>(op, i);
            case Mnemonic.Cmpsd when i.OpCount == 3:
                return VectorImmediate<CompareScalarDouble>(op, i);
            case Mnemonic.Addps:
                return Vector<PackedSingle<FloatAdd, Binary>>(op, i);
            case Mnemonic.Addpd:
                return Vector<PackedDouble<FloatAdd, Binary>>(op, i);
            case Mnemonic.Addss:
                return Vector<ScalarSingle<FloatAdd, Binary>>(op, i);
            case Mnemonic.Addsd:
                return Vector<ScalarDouble<FloatAdd, Binary>>(op, i);
            case Mnemonic.Subps:
                return Vector<PackedSingle<FloatSub, Binary>>(op, i);
            case Mnemonic.Subpd:
                return Vector<PackedDouble<FloatSub, Binary>>(op, i);
            case Mnemonic.Subss:
                return Vector<ScalarSingle<FloatSub, Binary>>(op, i);
            case Mnemonic.Subsd:
                return Vector<ScalarDouble<FloatSub, Binary>>(op, i);
            case Mnemonic.Mulps:
                return Vector<PackedSingle<FloatMul, Binary>>(op, i);
            case Mnemonic.Mulpd:
                return Vector<PackedDouble<FloatMul, Binary>>(op, i);
            case Mnemonic.Mulss:
                return Vector<ScalarSingle<FloatMul, Binary>>(op, i);
            case Mnemonic.Mulsd:
                return Vector<ScalarDouble<FloatMul, Binary>>(op, i);
            case Mnemonic.Divps:
                return Vector<PackedSingle<FloatDiv, Binary>>(op, i);
            case Mnemonic.Divpd:
                return Vector<PackedDouble<FloatDiv, Binary>>(op, i);
            case Mnemonic.Divss:
                return Vector<ScalarSingle<FloatDiv, Binary>>(op, i);
            case Mnemonic.Divsd:
                return Vector<ScalarDouble<FloatDiv, Binary>>(op, i);
            case Mnemonic.Minps:
                return Vector<PackedSingle<FloatMin, Binary>>(op, i);
            case Mnemonic.Minpd:
                return Vector<PackedDouble<FloatMin, Binary>>(op, i);
            case Mnemonic.Minss:
                return Vector<ScalarSingle<FloatMin, Binary>>(op, i);
            case Mnemonic.Minsd:
                return Vector<ScalarDouble<FloatMin, Binary>>(op, i);
            case Mnemonic.Maxps:
                return Vector<PackedSingle<FloatMax, Binary>>(op, i);
            case Mnemonic.Maxpd:
                return Vector<PackedDouble<FloatMax, Binary>>(op, i);
            case Mnemonic.Maxss:
                return Vector<ScalarSingle<FloatMax, Binary>>(op, i);
            case Mnemonic.Maxsd:
                return Vector<ScalarDouble<FloatMax, Binary>>(op, i);
            case Mnemonic.Sqrtps:
                return Vector<PackedSingle<FloatSqrt, Unary>>(op, i);
            case Mnemonic.Sqrtpd:
                return Vector<PackedDouble<FloatSqrt, Unary>>(op, i);
            case Mnemonic.Sqrtss:
                return Vector<ScalarSingle<FloatSqrt, Unary>>(op, i);
            case Mnemonic.Sqrtsd:
                return Vector<ScalarDouble<FloatSqrt, Unary>>(op, i);
            case Mnemonic.Movaps or Mnemonic.Movapd or Mnemonic.Movdqa:
            case Mnemonic.Movntps or Mnemonic.Movntpd or Mnemonic.Movntdq:
                return Whole(op, i, aligned: true);
            case Mnemonic.Movups or Mnemonic.Movupd or Mnemonic.Movdqu:
                return Whole(op, i, aligned: false);
            case Mnemonic.Movss:
                return Scalar(op, i, 4, H(&SseHandlers.VV<Movss>));
            case Mnemonic.Movsd:
                return Scalar(op, i, 8, H(&SseHandlers.VV<Movsd>));
            case Mnemonic.Movd:
                return Scalar(op, i, 4, 0);
            case Mnemonic.Movq:
                return Scalar(op, i, 8, H(&SseHandlers.VV<MovqLow>));
            case Mnemonic.Movlps or Mnemonic.Movlpd:
                return Half(op, i, 0);
            case Mnemonic.Movhps or Mnemonic.Movhpd:
                return Half(op, i, 8);
            case Mnemonic.Movmskps:
                return ToGeneral(op, i, H(&SseHandlers.MovmskPs));
            case Mnemonic.Movmskpd:
                return ToGeneral(op, i, H(&SseHandlers.MovmskPd));
            case Mnemonic.Pmovmskb:
                return ToGeneral(op, i, H(&SseHandlers.Pmovmskb));
            case Mnemonic.Pextrw:
                return Pextrw(op, i);
            case Mnemonic.Pinsrw:
                return Pinsrw(op, i);
            case Mnemonic.Cvtsi2ss:
                return ConvertFrom(op, i, single: true);
            case Mnemonic.Cvtsi2sd:
                return ConvertFrom(op, i, single: false);
            case Mnemonic.Cvtss2si:
                return ConvertTo(op, i, single: true, truncate: false);
            case Mnemonic.Cvttss2si:
                return ConvertTo(op, i, single: true, truncate: true);
            case Mnemonic.Cvtsd2si:
                return ConvertTo(op, i, single: false, truncate: false);
            case Mnemonic.Cvttsd2si:
                return ConvertTo(op, i, single: false, truncate: true);
            case Mnemonic.Comiss or Mnemonic.Ucomiss:
                return CompareFlags(op, i, single: true);
            case Mnemonic.Comisd or Mnemonic.Ucomisd:
                return CompareFlags(op, i, single: false);
            case Mnemonic.Maskmovdqu:
                return Maskmovdqu(op, i);
            case Mnemonic.Ldmxcsr:
                return MemoryOnly(op, i, H(&SseHandlers.Ldmxcsr));
            case Mnemonic.Stmxcsr:
                return MemoryOnly(op, i, H(&SseHandlers.Stmxcsr));
            case Mnemonic.Fxsave or Mnemonic.Fxsave64:
                return MemoryOnly(op, i, H(&SseHandlers.Fxsave));
            case Mnemonic.Fxrstor or Mnemonic.Fxrstor64:
                return MemoryOnly(op, i, H(&SseHandlers.Fxrstor));
            default:
                return false;
        }
    }
}
