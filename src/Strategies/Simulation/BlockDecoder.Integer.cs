using Iced.Intel;
using VirtBench.Vmm.Cpu;
using Handler = nint;

namespace VirtBench.Strategies.Simulation;

/// <summary>Integer instructions.</summary>
internal sealed unsafe partial class BlockDecoder
{
    private enum Form
    {
        RR,
        RI,
        RM,
        MR,
        MI,
    }

    private static Handler Alu<TAlu>(Form form, int size)
        where TAlu : struct, IAlu =>
        form switch
        {
            Form.RR => size switch
            {
                1 => H(&AluHandlers.RR<TAlu, byte>),
                2 => H(&AluHandlers.RR<TAlu, ushort>),
                4 => H(&AluHandlers.RR<TAlu, uint>),
                8 => H(&AluHandlers.RR<TAlu, ulong>),
                _ => 0,
            },
            Form.RI => size switch
            {
                1 => H(&AluHandlers.RI<TAlu, byte>),
                2 => H(&AluHandlers.RI<TAlu, ushort>),
                4 => H(&AluHandlers.RI<TAlu, uint>),
                8 => H(&AluHandlers.RI<TAlu, ulong>),
                _ => 0,
            },
            Form.RM => size switch
            {
                1 => H(&AluHandlers.RM<TAlu, byte>),
                2 => H(&AluHandlers.RM<TAlu, ushort>),
                4 => H(&AluHandlers.RM<TAlu, uint>),
                8 => H(&AluHandlers.RM<TAlu, ulong>),
                _ => 0,
            },
            Form.MR => size switch
            {
                1 => H(&AluHandlers.MR<TAlu, byte>),
                2 => H(&AluHandlers.MR<TAlu, ushort>),
                4 => H(&AluHandlers.MR<TAlu, uint>),
                8 => H(&AluHandlers.MR<TAlu, ulong>),
                _ => 0,
            },
            Form.MI => size switch
            {
                1 => H(&AluHandlers.MI<TAlu, byte>),
                2 => H(&AluHandlers.MI<TAlu, ushort>),
                4 => H(&AluHandlers.MI<TAlu, uint>),
                8 => H(&AluHandlers.MI<TAlu, ulong>),
                _ => 0,
            },
            _ => 0,
        };

    private static Handler SilentAlu<TAlu>(Form form, int size)
        where TAlu : struct, IAlu =>
        form switch
        {
            Form.RR => size switch
            {
                4 => H(&AluHandlers.RR<TAlu, uint>),
                8 => H(&AluHandlers.RR<TAlu, ulong>),
                _ => 0,
            },
            Form.RI => size switch
            {
                4 => H(&AluHandlers.RI<TAlu, uint>),
                8 => H(&AluHandlers.RI<TAlu, ulong>),
                _ => 0,
            },
            _ => 0,
        };

    private static Handler ShiftRI<TShift>(int size)
        where TShift : struct, IShift =>
        size switch
        {
            1 => H(&ShiftHandlers.RI<TShift, byte>),
            2 => H(&ShiftHandlers.RI<TShift, ushort>),
            4 => H(&ShiftHandlers.RI<TShift, uint>),
            8 => H(&ShiftHandlers.RI<TShift, ulong>),
            _ => 0,
        };

    private static Handler ShiftRC<TShift>(int size)
        where TShift : struct, IShift =>
        size switch
        {
            1 => H(&ShiftHandlers.RC<TShift, byte>),
            2 => H(&ShiftHandlers.RC<TShift, ushort>),
            4 => H(&ShiftHandlers.RC<TShift, uint>),
            8 => H(&ShiftHandlers.RC<TShift, ulong>),
            _ => 0,
        };

    private static Handler ShiftMI<TShift>(int size)
        where TShift : struct, IShift =>
        size switch
        {
            1 => H(&ShiftHandlers.MI<TShift, byte>),
            2 => H(&ShiftHandlers.MI<TShift, ushort>),
            4 => H(&ShiftHandlers.MI<TShift, uint>),
            8 => H(&ShiftHandlers.MI<TShift, ulong>),
            _ => 0,
        };

    private static Handler ShiftMC<TShift>(int size)
        where TShift : struct, IShift =>
        size switch
        {
            1 => H(&ShiftHandlers.MC<TShift, byte>),
            2 => H(&ShiftHandlers.MC<TShift, ushort>),
            4 => H(&ShiftHandlers.MC<TShift, uint>),
            8 => H(&ShiftHandlers.MC<TShift, ulong>),
            _ => 0,
        };

    private static Handler DoubleR<TLeft>(int size)
        where TLeft : struct, IDirection =>
        size switch
        {
            2 => H(&ShiftHandlers.DoubleR<TLeft, ushort>),
            4 => H(&ShiftHandlers.DoubleR<TLeft, uint>),
            8 => H(&ShiftHandlers.DoubleR<TLeft, ulong>),
            _ => 0,
        };

    private static Handler DoubleM<TLeft>(int size)
        where TLeft : struct, IDirection =>
        size switch
        {
            2 => H(&ShiftHandlers.DoubleM<TLeft, ushort>),
            4 => H(&ShiftHandlers.DoubleM<TLeft, uint>),
            8 => H(&ShiftHandlers.DoubleM<TLeft, ulong>),
            _ => 0,
        };

    private static Handler BitRR<TChange>(int size)
        where TChange : struct, IBitChange =>
        size switch
        {
            2 => H(&BitHandlers.RR<TChange, ushort>),
            4 => H(&BitHandlers.RR<TChange, uint>),
            8 => H(&BitHandlers.RR<TChange, ulong>),
            _ => 0,
        };

    private static Handler BitRI<TChange>(int size)
        where TChange : struct, IBitChange =>
        size switch
        {
            2 => H(&BitHandlers.RI<TChange, ushort>),
            4 => H(&BitHandlers.RI<TChange, uint>),
            8 => H(&BitHandlers.RI<TChange, ulong>),
            _ => 0,
        };

    private static Handler BitMR<TChange>(int size)
        where TChange : struct, IBitChange =>
        size switch
        {
            2 => H(&BitHandlers.MR<TChange, ushort>),
            4 => H(&BitHandlers.MR<TChange, uint>),
            8 => H(&BitHandlers.MR<TChange, ulong>),
            _ => 0,
        };

    private static Handler BitMI<TChange>(int size)
        where TChange : struct, IBitChange =>
        size switch
        {
            2 => H(&BitHandlers.MI<TChange, ushort>),
            4 => H(&BitHandlers.MI<TChange, uint>),
            8 => H(&BitHandlers.MI<TChange, ulong>),
            _ => 0,
        };

    private static Handler MulR(int size) =>
        size switch
        {
            1 => H(&MultiplyHandlers.MulR<byte>),
            2 => H(&MultiplyHandlers.MulR<ushort>),
            4 => H(&MultiplyHandlers.MulR<uint>),
            8 => H(&MultiplyHandlers.MulR<ulong>),
            _ => 0,
        };

    private static Handler MulM(int size) =>
        size switch
        {
            1 => H(&MultiplyHandlers.MulM<byte>),
            2 => H(&MultiplyHandlers.MulM<ushort>),
            4 => H(&MultiplyHandlers.MulM<uint>),
            8 => H(&MultiplyHandlers.MulM<ulong>),
            _ => 0,
        };

    private static Handler ImulR(int size) =>
        size switch
        {
            1 => H(&MultiplyHandlers.ImulR<byte>),
            2 => H(&MultiplyHandlers.ImulR<ushort>),
            4 => H(&MultiplyHandlers.ImulR<uint>),
            8 => H(&MultiplyHandlers.ImulR<ulong>),
            _ => 0,
        };

    private static Handler ImulM(int size) =>
        size switch
        {
            1 => H(&MultiplyHandlers.ImulM<byte>),
            2 => H(&MultiplyHandlers.ImulM<ushort>),
            4 => H(&MultiplyHandlers.ImulM<uint>),
            8 => H(&MultiplyHandlers.ImulM<ulong>),
            _ => 0,
        };

    private static Handler DivR(int size) =>
        size switch
        {
            1 => H(&MultiplyHandlers.DivR<byte>),
            2 => H(&MultiplyHandlers.DivR<ushort>),
            4 => H(&MultiplyHandlers.DivR<uint>),
            8 => H(&MultiplyHandlers.DivR<ulong>),
            _ => 0,
        };

    private static Handler DivM(int size) =>
        size switch
        {
            1 => H(&MultiplyHandlers.DivM<byte>),
            2 => H(&MultiplyHandlers.DivM<ushort>),
            4 => H(&MultiplyHandlers.DivM<uint>),
            8 => H(&MultiplyHandlers.DivM<ulong>),
            _ => 0,
        };

    private static Handler IdivR(int size) =>
        size switch
        {
            1 => H(&MultiplyHandlers.IdivR<byte>),
            2 => H(&MultiplyHandlers.IdivR<ushort>),
            4 => H(&MultiplyHandlers.IdivR<uint>),
            8 => H(&MultiplyHandlers.IdivR<ulong>),
            _ => 0,
        };

    private static Handler IdivM(int size) =>
        size switch
        {
            1 => H(&MultiplyHandlers.IdivM<byte>),
            2 => H(&MultiplyHandlers.IdivM<ushort>),
            4 => H(&MultiplyHandlers.IdivM<uint>),
            8 => H(&MultiplyHandlers.IdivM<ulong>),
            _ => 0,
        };

    private static Handler ImulRR(int size) =>
        size switch
        {
            2 => H(&MultiplyHandlers.ImulRR<ushort>),
            4 => H(&MultiplyHandlers.ImulRR<uint>),
            8 => H(&MultiplyHandlers.ImulRR<ulong>),
            _ => 0,
        };

    private static Handler ImulRM(int size) =>
        size switch
        {
            2 => H(&MultiplyHandlers.ImulRM<ushort>),
            4 => H(&MultiplyHandlers.ImulRM<uint>),
            8 => H(&MultiplyHandlers.ImulRM<ulong>),
            _ => 0,
        };

    private static Handler ImulRRI(int size) =>
        size switch
        {
            2 => H(&MultiplyHandlers.ImulRRI<ushort>),
            4 => H(&MultiplyHandlers.ImulRRI<uint>),
            8 => H(&MultiplyHandlers.ImulRRI<ulong>),
            _ => 0,
        };

    private static Handler ImulRMI(int size) =>
        size switch
        {
            2 => H(&MultiplyHandlers.ImulRMI<ushort>),
            4 => H(&MultiplyHandlers.ImulRMI<uint>),
            8 => H(&MultiplyHandlers.ImulRMI<ulong>),
            _ => 0,
        };

    private static Handler MovRR(int size) =>
        size switch
        {
            1 => H(&MoveHandlers.MovRR<byte>),
            2 => H(&MoveHandlers.MovRR<ushort>),
            4 => H(&MoveHandlers.MovRR<uint>),
            8 => H(&MoveHandlers.MovRR<ulong>),
            _ => 0,
        };

    private static Handler MovRI(int size) =>
        size switch
        {
            1 => H(&MoveHandlers.MovRI<byte>),
            2 => H(&MoveHandlers.MovRI<ushort>),
            4 => H(&MoveHandlers.MovRI<uint>),
            8 => H(&MoveHandlers.MovRI<ulong>),
            _ => 0,
        };

    private static Handler MovRM(int size) =>
        size switch
        {
            1 => H(&MoveHandlers.MovRM<byte>),
            2 => H(&MoveHandlers.MovRM<ushort>),
            4 => H(&MoveHandlers.MovRM<uint>),
            8 => H(&MoveHandlers.MovRM<ulong>),
            _ => 0,
        };

    private static Handler MovMR(int size) =>
        size switch
        {
            1 => H(&MoveHandlers.MovMR<byte>),
            2 => H(&MoveHandlers.MovMR<ushort>),
            4 => H(&MoveHandlers.MovMR<uint>),
            8 => H(&MoveHandlers.MovMR<ulong>),
            _ => 0,
        };

    private static Handler MovMI(int size) =>
        size switch
        {
            1 => H(&MoveHandlers.MovMI<byte>),
            2 => H(&MoveHandlers.MovMI<ushort>),
            4 => H(&MoveHandlers.MovMI<uint>),
            8 => H(&MoveHandlers.MovMI<ulong>),
            _ => 0,
        };

    private static Handler XchgRR(int size) =>
        size switch
        {
            1 => H(&MoveHandlers.XchgRR<byte>),
            2 => H(&MoveHandlers.XchgRR<ushort>),
            4 => H(&MoveHandlers.XchgRR<uint>),
            8 => H(&MoveHandlers.XchgRR<ulong>),
            _ => 0,
        };

    private static Handler XchgMR(int size) =>
        size switch
        {
            1 => H(&MoveHandlers.XchgMR<byte>),
            2 => H(&MoveHandlers.XchgMR<ushort>),
            4 => H(&MoveHandlers.XchgMR<uint>),
            8 => H(&MoveHandlers.XchgMR<ulong>),
            _ => 0,
        };

    private static Handler XaddRR(int size) =>
        size switch
        {
            1 => H(&MoveHandlers.XaddRR<byte>),
            2 => H(&MoveHandlers.XaddRR<ushort>),
            4 => H(&MoveHandlers.XaddRR<uint>),
            8 => H(&MoveHandlers.XaddRR<ulong>),
            _ => 0,
        };

    private static Handler XaddMR(int size) =>
        size switch
        {
            1 => H(&MoveHandlers.XaddMR<byte>),
            2 => H(&MoveHandlers.XaddMR<ushort>),
            4 => H(&MoveHandlers.XaddMR<uint>),
            8 => H(&MoveHandlers.XaddMR<ulong>),
            _ => 0,
        };

    private static Handler CmpxchgRR(int size) =>
        size switch
        {
            1 => H(&MoveHandlers.CmpxchgRR<byte>),
            2 => H(&MoveHandlers.CmpxchgRR<ushort>),
            4 => H(&MoveHandlers.CmpxchgRR<uint>),
            8 => H(&MoveHandlers.CmpxchgRR<ulong>),
            _ => 0,
        };

    private static Handler CmpxchgMR(int size) =>
        size switch
        {
            1 => H(&MoveHandlers.CmpxchgMR<byte>),
            2 => H(&MoveHandlers.CmpxchgMR<ushort>),
            4 => H(&MoveHandlers.CmpxchgMR<uint>),
            8 => H(&MoveHandlers.CmpxchgMR<ulong>),
            _ => 0,
        };

    private static Handler BsfRR(int size) =>
        size switch
        {
            2 => H(&BitHandlers.BsfRR<ushort>),
            4 => H(&BitHandlers.BsfRR<uint>),
            8 => H(&BitHandlers.BsfRR<ulong>),
            _ => 0,
        };

    private static Handler BsfRM(int size) =>
        size switch
        {
            2 => H(&BitHandlers.BsfRM<ushort>),
            4 => H(&BitHandlers.BsfRM<uint>),
            8 => H(&BitHandlers.BsfRM<ulong>),
            _ => 0,
        };

    private static Handler BsrRR(int size) =>
        size switch
        {
            2 => H(&BitHandlers.BsrRR<ushort>),
            4 => H(&BitHandlers.BsrRR<uint>),
            8 => H(&BitHandlers.BsrRR<ulong>),
            _ => 0,
        };

    private static Handler BsrRM(int size) =>
        size switch
        {
            2 => H(&BitHandlers.BsrRM<ushort>),
            4 => H(&BitHandlers.BsrRM<uint>),
            8 => H(&BitHandlers.BsrRM<ulong>),
            _ => 0,
        };

    private static Handler Lea(int size) =>
        size switch
        {
            2 => H(&MoveHandlers.Lea<ushort>),
            4 => H(&MoveHandlers.Lea<uint>),
            8 => H(&MoveHandlers.Lea<ulong>),
            _ => 0,
        };

    private static Handler PushI(int size) =>
        size switch
        {
            2 => H(&MoveHandlers.PushI<ushort>),
            8 => H(&MoveHandlers.PushI<ulong>),
            _ => 0,
        };

    private static Handler PushM(int size) =>
        size switch
        {
            2 => H(&MoveHandlers.PushM<ushort>),
            8 => H(&MoveHandlers.PushM<ulong>),
            _ => 0,
        };

    private static Handler PopR(int size) =>
        size switch
        {
            2 => H(&MoveHandlers.PopR<ushort>),
            8 => H(&MoveHandlers.PopR<ulong>),
            _ => 0,
        };

    private static Handler PopM(int size) =>
        size switch
        {
            2 => H(&MoveHandlers.PopM<ushort>),
            8 => H(&MoveHandlers.PopM<ulong>),
            _ => 0,
        };

    private static Handler MovzxRR(int to, int size) =>
        (to, size) switch
        {
            (2, 1) => H(&MoveHandlers.MovzxRR<ushort, byte>),
            (2, 2) => H(&MoveHandlers.MovzxRR<ushort, ushort>),
            (4, 1) => H(&MoveHandlers.MovzxRR<uint, byte>),
            (4, 2) => H(&MoveHandlers.MovzxRR<uint, ushort>),
            (4, 4) => H(&MoveHandlers.MovzxRR<uint, uint>),
            (8, 1) => H(&MoveHandlers.MovzxRR<ulong, byte>),
            (8, 2) => H(&MoveHandlers.MovzxRR<ulong, ushort>),
            (8, 4) => H(&MoveHandlers.MovzxRR<ulong, uint>),
            _ => 0,
        };

    private static Handler MovsxRR(int to, int size) =>
        (to, size) switch
        {
            (2, 1) => H(&MoveHandlers.MovsxRR<ushort, byte>),
            (2, 2) => H(&MoveHandlers.MovsxRR<ushort, ushort>),
            (4, 1) => H(&MoveHandlers.MovsxRR<uint, byte>),
            (4, 2) => H(&MoveHandlers.MovsxRR<uint, ushort>),
            (4, 4) => H(&MoveHandlers.MovsxRR<uint, uint>),
            (8, 1) => H(&MoveHandlers.MovsxRR<ulong, byte>),
            (8, 2) => H(&MoveHandlers.MovsxRR<ulong, ushort>),
            (8, 4) => H(&MoveHandlers.MovsxRR<ulong, uint>),
            _ => 0,
        };

    private static Handler MovzxRM(int to, int size) =>
        (to, size) switch
        {
            (2, 1) => H(&MoveHandlers.MovzxRM<ushort, byte>),
            (2, 2) => H(&MoveHandlers.MovzxRM<ushort, ushort>),
            (4, 1) => H(&MoveHandlers.MovzxRM<uint, byte>),
            (4, 2) => H(&MoveHandlers.MovzxRM<uint, ushort>),
            (4, 4) => H(&MoveHandlers.MovzxRM<uint, uint>),
            (8, 1) => H(&MoveHandlers.MovzxRM<ulong, byte>),
            (8, 2) => H(&MoveHandlers.MovzxRM<ulong, ushort>),
            (8, 4) => H(&MoveHandlers.MovzxRM<ulong, uint>),
            _ => 0,
        };

    private static Handler MovsxRM(int to, int size) =>
        (to, size) switch
        {
            (2, 1) => H(&MoveHandlers.MovsxRM<ushort, byte>),
            (2, 2) => H(&MoveHandlers.MovsxRM<ushort, ushort>),
            (4, 1) => H(&MoveHandlers.MovsxRM<uint, byte>),
            (4, 2) => H(&MoveHandlers.MovsxRM<uint, ushort>),
            (4, 4) => H(&MoveHandlers.MovsxRM<uint, uint>),
            (8, 1) => H(&MoveHandlers.MovsxRM<ulong, byte>),
            (8, 2) => H(&MoveHandlers.MovsxRM<ulong, ushort>),
            (8, 4) => H(&MoveHandlers.MovsxRM<ulong, uint>),
            _ => 0,
        };

    private static Handler CmovRR<TCondition>(int size)
        where TCondition : struct, ICondition =>
        size switch
        {
            2 => H(&MoveHandlers.CmovRR<TCondition, ushort>),
            4 => H(&MoveHandlers.CmovRR<TCondition, uint>),
            8 => H(&MoveHandlers.CmovRR<TCondition, ulong>),
            _ => 0,
        };

    private static Handler CmovRM<TCondition>(int size)
        where TCondition : struct, ICondition =>
        size switch
        {
            2 => H(&MoveHandlers.CmovRM<TCondition, ushort>),
            4 => H(&MoveHandlers.CmovRM<TCondition, uint>),
            8 => H(&MoveHandlers.CmovRM<TCondition, ulong>),
            _ => 0,
        };

    private static Handler Jcc(ConditionCode condition) =>
        condition switch
        {
            ConditionCode.o => H(&BranchHandlers.Jcc<IfO>),
            ConditionCode.no => H(&BranchHandlers.Jcc<IfNo>),
            ConditionCode.b => H(&BranchHandlers.Jcc<IfB>),
            ConditionCode.ae => H(&BranchHandlers.Jcc<IfAe>),
            ConditionCode.e => H(&BranchHandlers.Jcc<IfE>),
            ConditionCode.ne => H(&BranchHandlers.Jcc<IfNe>),
            ConditionCode.be => H(&BranchHandlers.Jcc<IfBe>),
            ConditionCode.a => H(&BranchHandlers.Jcc<IfA>),
            ConditionCode.s => H(&BranchHandlers.Jcc<IfS>),
            ConditionCode.ns => H(&BranchHandlers.Jcc<IfNs>),
            ConditionCode.p => H(&BranchHandlers.Jcc<IfP>),
            ConditionCode.np => H(&BranchHandlers.Jcc<IfNp>),
            ConditionCode.l => H(&BranchHandlers.Jcc<IfL>),
            ConditionCode.ge => H(&BranchHandlers.Jcc<IfGe>),
            ConditionCode.le => H(&BranchHandlers.Jcc<IfLe>),
            ConditionCode.g => H(&BranchHandlers.Jcc<IfG>),
            _ => 0,
        };

    private static Handler SetccR(ConditionCode condition) =>
        condition switch
        {
            ConditionCode.o => H(&MoveHandlers.SetccR<IfO>),
            ConditionCode.no => H(&MoveHandlers.SetccR<IfNo>),
            ConditionCode.b => H(&MoveHandlers.SetccR<IfB>),
            ConditionCode.ae => H(&MoveHandlers.SetccR<IfAe>),
            ConditionCode.e => H(&MoveHandlers.SetccR<IfE>),
            ConditionCode.ne => H(&MoveHandlers.SetccR<IfNe>),
            ConditionCode.be => H(&MoveHandlers.SetccR<IfBe>),
            ConditionCode.a => H(&MoveHandlers.SetccR<IfA>),
            ConditionCode.s => H(&MoveHandlers.SetccR<IfS>),
            ConditionCode.ns => H(&MoveHandlers.SetccR<IfNs>),
            ConditionCode.p => H(&MoveHandlers.SetccR<IfP>),
            ConditionCode.np => H(&MoveHandlers.SetccR<IfNp>),
            ConditionCode.l => H(&MoveHandlers.SetccR<IfL>),
            ConditionCode.ge => H(&MoveHandlers.SetccR<IfGe>),
            ConditionCode.le => H(&MoveHandlers.SetccR<IfLe>),
            ConditionCode.g => H(&MoveHandlers.SetccR<IfG>),
            _ => 0,
        };

    private static Handler SetccM(ConditionCode condition) =>
        condition switch
        {
            ConditionCode.o => H(&MoveHandlers.SetccM<IfO>),
            ConditionCode.no => H(&MoveHandlers.SetccM<IfNo>),
            ConditionCode.b => H(&MoveHandlers.SetccM<IfB>),
            ConditionCode.ae => H(&MoveHandlers.SetccM<IfAe>),
            ConditionCode.e => H(&MoveHandlers.SetccM<IfE>),
            ConditionCode.ne => H(&MoveHandlers.SetccM<IfNe>),
            ConditionCode.be => H(&MoveHandlers.SetccM<IfBe>),
            ConditionCode.a => H(&MoveHandlers.SetccM<IfA>),
            ConditionCode.s => H(&MoveHandlers.SetccM<IfS>),
            ConditionCode.ns => H(&MoveHandlers.SetccM<IfNs>),
            ConditionCode.p => H(&MoveHandlers.SetccM<IfP>),
            ConditionCode.np => H(&MoveHandlers.SetccM<IfNp>),
            ConditionCode.l => H(&MoveHandlers.SetccM<IfL>),
            ConditionCode.ge => H(&MoveHandlers.SetccM<IfGe>),
            ConditionCode.le => H(&MoveHandlers.SetccM<IfLe>),
            ConditionCode.g => H(&MoveHandlers.SetccM<IfG>),
            _ => 0,
        };

    private static Handler CmovRR(ConditionCode condition, int size) =>
        condition switch
        {
            ConditionCode.o => CmovRR<IfO>(size),
            ConditionCode.no => CmovRR<IfNo>(size),
            ConditionCode.b => CmovRR<IfB>(size),
            ConditionCode.ae => CmovRR<IfAe>(size),
            ConditionCode.e => CmovRR<IfE>(size),
            ConditionCode.ne => CmovRR<IfNe>(size),
            ConditionCode.be => CmovRR<IfBe>(size),
            ConditionCode.a => CmovRR<IfA>(size),
            ConditionCode.s => CmovRR<IfS>(size),
            ConditionCode.ns => CmovRR<IfNs>(size),
            ConditionCode.p => CmovRR<IfP>(size),
            ConditionCode.np => CmovRR<IfNp>(size),
            ConditionCode.l => CmovRR<IfL>(size),
            ConditionCode.ge => CmovRR<IfGe>(size),
            ConditionCode.le => CmovRR<IfLe>(size),
            ConditionCode.g => CmovRR<IfG>(size),
            _ => 0,
        };

    private static Handler CmovRM(ConditionCode condition, int size) =>
        condition switch
        {
            ConditionCode.o => CmovRM<IfO>(size),
            ConditionCode.no => CmovRM<IfNo>(size),
            ConditionCode.b => CmovRM<IfB>(size),
            ConditionCode.ae => CmovRM<IfAe>(size),
            ConditionCode.e => CmovRM<IfE>(size),
            ConditionCode.ne => CmovRM<IfNe>(size),
            ConditionCode.be => CmovRM<IfBe>(size),
            ConditionCode.a => CmovRM<IfA>(size),
            ConditionCode.s => CmovRM<IfS>(size),
            ConditionCode.ns => CmovRM<IfNs>(size),
            ConditionCode.p => CmovRM<IfP>(size),
            ConditionCode.np => CmovRM<IfNp>(size),
            ConditionCode.l => CmovRM<IfL>(size),
            ConditionCode.ge => CmovRM<IfGe>(size),
            ConditionCode.le => CmovRM<IfLe>(size),
            ConditionCode.g => CmovRM<IfG>(size),
            _ => 0,
        };

    private static Handler Fused<TAlu, TCondition>(bool immediate, int size)
        where TAlu : struct, IAlu
        where TCondition : struct, ICondition =>
        (immediate, size) switch
        {
            (false, 4) => H(&BranchHandlers.RRJcc<TAlu, TCondition, uint>),
            (false, 8) => H(&BranchHandlers.RRJcc<TAlu, TCondition, ulong>),
            (true, 1) => H(&BranchHandlers.RIJcc<TAlu, TCondition, byte>),
            (true, 4) => H(&BranchHandlers.RIJcc<TAlu, TCondition, uint>),
            (true, 8) => H(&BranchHandlers.RIJcc<TAlu, TCondition, ulong>),
            _ => 0,
        };

    private static Handler FusedCmp(ConditionCode condition, bool immediate, int size) =>
        condition switch
        {
            ConditionCode.o => Fused<Cmp, IfO>(immediate, size),
            ConditionCode.no => Fused<Cmp, IfNo>(immediate, size),
            ConditionCode.b => Fused<Cmp, IfB>(immediate, size),
            ConditionCode.ae => Fused<Cmp, IfAe>(immediate, size),
            ConditionCode.e => Fused<Cmp, IfE>(immediate, size),
            ConditionCode.ne => Fused<Cmp, IfNe>(immediate, size),
            ConditionCode.be => Fused<Cmp, IfBe>(immediate, size),
            ConditionCode.a => Fused<Cmp, IfA>(immediate, size),
            ConditionCode.s => Fused<Cmp, IfS>(immediate, size),
            ConditionCode.ns => Fused<Cmp, IfNs>(immediate, size),
            ConditionCode.p => Fused<Cmp, IfP>(immediate, size),
            ConditionCode.np => Fused<Cmp, IfNp>(immediate, size),
            ConditionCode.l => Fused<Cmp, IfL>(immediate, size),
            ConditionCode.ge => Fused<Cmp, IfGe>(immediate, size),
            ConditionCode.le => Fused<Cmp, IfLe>(immediate, size),
            ConditionCode.g => Fused<Cmp, IfG>(immediate, size),
            _ => 0,
        };

    private static Handler FusedTest(ConditionCode condition, bool immediate, int size) =>
        condition switch
        {
            ConditionCode.e => Fused<Test, IfE>(immediate, size),
            ConditionCode.ne => Fused<Test, IfNe>(immediate, size),
            ConditionCode.s => Fused<Test, IfS>(immediate, size),
            ConditionCode.ns => Fused<Test, IfNs>(immediate, size),
            ConditionCode.le => Fused<Test, IfLe>(immediate, size),
            ConditionCode.g => Fused<Test, IfG>(immediate, size),
            _ => 0,
        };

    private static Handler FusedSub(ConditionCode condition, bool immediate, int size) =>
        condition switch
        {
            ConditionCode.e => Fused<Sub, IfE>(immediate, size),
            ConditionCode.ne => Fused<Sub, IfNe>(immediate, size),
            _ => 0,
        };

    private static Handler FusedAdd(ConditionCode condition, bool immediate, int size) =>
        condition switch
        {
            ConditionCode.e => Fused<Add, IfE>(immediate, size),
            ConditionCode.ne => Fused<Add, IfNe>(immediate, size),
            _ => 0,
        };

    private static Handler FusedAnd(ConditionCode condition, bool immediate, int size) =>
        condition switch
        {
            ConditionCode.e => Fused<And, IfE>(immediate, size),
            ConditionCode.ne => Fused<And, IfNe>(immediate, size),
            _ => 0,
        };

    private static Handler FusedDec(ConditionCode condition, bool immediate, int size) =>
        condition switch
        {
            ConditionCode.e => Fused<Dec, IfE>(immediate, size),
            ConditionCode.ne => Fused<Dec, IfNe>(immediate, size),
            _ => 0,
        };

    private static Handler FusedInc(ConditionCode condition, bool immediate, int size) =>
        condition switch
        {
            ConditionCode.e => Fused<Inc, IfE>(immediate, size),
            ConditionCode.ne => Fused<Inc, IfNe>(immediate, size),
            _ => 0,
        };

    private static Handler FusedHandler(FusibleForm form, ConditionCode condition) =>
        form.Alu switch
        {
            FusibleAlu.Cmp => FusedCmp(condition, form.Immediate, form.Size),
            FusibleAlu.Test => FusedTest(condition, form.Immediate, form.Size),
            FusibleAlu.Sub => FusedSub(condition, form.Immediate, form.Size),
            FusibleAlu.Add => FusedAdd(condition, form.Immediate, form.Size),
            FusibleAlu.And => FusedAnd(condition, form.Immediate, form.Size),
            FusibleAlu.Dec => FusedDec(condition, form.Immediate, form.Size),
            FusibleAlu.Inc => FusedInc(condition, form.Immediate, form.Size),
            _ => 0,
        };

    private static Handler StringOp<TStep, TRepeat>(int size)
        where TStep : struct, IStringStep
        where TRepeat : struct, IRepeat =>
        size switch
        {
            1 => H(&StringHandlers.Run<TStep, TRepeat, byte>),
            2 => H(&StringHandlers.Run<TStep, TRepeat, ushort>),
            4 => H(&StringHandlers.Run<TStep, TRepeat, uint>),
            8 => H(&StringHandlers.Run<TStep, TRepeat, ulong>),
            _ => 0,
        };

    private static Handler StringOp<TStep>(in Instruction i, int size, bool compares)
        where TStep : struct, IStringStep =>
        !i.HasRepPrefix && !i.HasRepnePrefix ? StringOp<TStep, Once>(size)
        : !compares ? StringOp<TStep, Rep>(size)
        : i.HasRepnePrefix ? StringOp<TStep, Repne>(size)
        : StringOp<TStep, Repe>(size);

    private bool Set(Op* op, Handler handler)
    {
        *(Handler*)op = handler;
        return handler != 0;
    }

    private static bool IsRegister(in Instruction i, int operand) => i.GetOpKind(operand) == OpKind.Register;

    private static bool IsMemory(in Instruction i, int operand) => i.GetOpKind(operand) == OpKind.Memory;

    /// <summary>Two operands: register or memory, then register, memory or immediate.</summary>
    private Form TwoOperands(Op* op, in Instruction i)
    {
        if (IsMemory(i, 0))
        {
            SetMemory(op, i);
            if (IsRegister(i, 1))
            {
                op->A = Offset(i.Op1Register);
                return Form.MR;
            }

            op->Immediate = i.GetImmediate(1);
            return Form.MI;
        }

        op->A = Offset(i.Op0Register);
        if (IsMemory(i, 1))
        {
            SetMemory(op, i);
            return Form.RM;
        }

        if (IsRegister(i, 1))
        {
            op->B = Offset(i.Op1Register);
            return Form.RR;
        }

        op->Immediate = i.GetImmediate(1);
        return Form.RI;
    }

    private bool EmitAlu<TAlu>(Op* op, in Instruction i, ref FusibleForm fusible, FusibleAlu alu = FusibleAlu.None)
        where TAlu : struct, IAlu
    {
        int size = SizeOf(i, 0);
        Form form = TwoOperands(op, i);
        if (form is Form.RR or Form.RI)
        {
            fusible = new FusibleForm(alu, form == Form.RI, size);
        }

        return Set(op, Alu<TAlu>(form, size));
    }

    private bool EmitAlu<TAlu, TSilent>(
        Op* op,
        in Instruction i,
        ref FusibleForm fusible,
        FusibleAlu alu = FusibleAlu.None
    )
        where TAlu : struct, IAlu
        where TSilent : struct, IAlu
    {
        int size = SizeOf(i, 0);
        Form form = TwoOperands(op, i);
        if (form is Form.RR or Form.RI)
        {
            fusible = new FusibleForm(alu, form == Form.RI, size);
            _silentHandler = SilentAlu<TSilent>(form, size);
        }

        return Set(op, Alu<TAlu>(form, size));
    }

    /// <summary>INC, DEC, NEG, NOT: the missing operand is an immediate that is ignored.</summary>
    private bool EmitUnary<TAlu>(Op* op, in Instruction i, ref FusibleForm fusible, FusibleAlu alu = FusibleAlu.None)
        where TAlu : struct, IAlu
    {
        int size = SizeOf(i, 0);
        if (IsMemory(i, 0))
        {
            SetMemory(op, i);
            return Set(op, Alu<TAlu>(Form.MI, size));
        }

        op->A = Offset(i.Op0Register);
        fusible = new FusibleForm(alu, true, size);
        return Set(op, Alu<TAlu>(Form.RI, size));
    }

    private bool EmitOneOperand(Op* op, in Instruction i, Handler register, Handler memory)
    {
        if (IsMemory(i, 0))
        {
            SetMemory(op, i);
            return Set(op, memory);
        }

        op->A = Offset(i.Op0Register);
        return Set(op, register);
    }

    private bool EmitShift<TShift>(Op* op, in Instruction i)
        where TShift : struct, IShift => EmitShift<TShift>(op, i, 0, 0);

    private bool EmitShift<TShift>(Op* op, in Instruction i, Handler silent32, Handler silent64)
        where TShift : struct, IShift
    {
        int size = SizeOf(i, 0);
        bool byCl = i.Op1Kind == OpKind.Register;
        int count = byCl ? 0 : (int)i.GetImmediate(1) & (size == 8 ? 63 : 31);
        op->Immediate = (ulong)count;
        if (IsMemory(i, 0))
        {
            SetMemory(op, i);
            return Set(op, byCl ? ShiftMC<TShift>(size) : ShiftMI<TShift>(size));
        }

        op->A = Offset(i.Op0Register);
        if (byCl)
        {
            return Set(op, ShiftRC<TShift>(size));
        }

        if (count == 0)
        {
            op->B = op->A; // flags and value stay, but a 32-bit form clears the upper half
            return Set(op, MovRR(size));
        }

        _silentHandler =
            size == 8 ? silent64
            : size == 4 ? silent32
            : 0;
        return Set(op, ShiftRI<TShift>(size));
    }

    private bool EmitDouble<TLeft>(Op* op, in Instruction i)
        where TLeft : struct, IDirection
    {
        int size = SizeOf(i, 0);
        op->Immediate = i.Op2Kind == OpKind.Register ? 256 : i.GetImmediate(2) & 0xFF;
        if (IsMemory(i, 0))
        {
            SetMemory(op, i);
            op->A = Offset(i.Op1Register);
            return Set(op, DoubleM<TLeft>(size));
        }

        op->A = Offset(i.Op0Register);
        op->B = Offset(i.Op1Register);
        return Set(op, DoubleR<TLeft>(size));
    }

    private bool EmitBit<TChange>(Op* op, in Instruction i)
        where TChange : struct, IBitChange
    {
        int size = SizeOf(i, 0);
        return Set(
            op,
            TwoOperands(op, i) switch
            {
                Form.RR => BitRR<TChange>(size),
                Form.RI => BitRI<TChange>(size),
                Form.MR => BitMR<TChange>(size),
                _ => BitMI<TChange>(size),
            }
        );
    }

    private bool EmitMov(Op* op, in Instruction i)
    {
        if (i.Op0Register.IsSegmentRegister() || (IsRegister(i, 1) && i.Op1Register.IsSegmentRegister()))
        {
            return EmitSegmentMove(op, i);
        }

        if ((IsRegister(i, 0) && !i.Op0Register.IsGPR()) || (IsRegister(i, 1) && !i.Op1Register.IsGPR()))
        {
            return false; // control and debug registers
        }

        int size = SizeOf(i, 0);
        return Set(
            op,
            TwoOperands(op, i) switch
            {
                Form.RR => MovRR(size),
                Form.RI => MovRI(size),
                Form.RM => MovRM(size),
                Form.MR => MovMR(size),
                _ => MovMI(size),
            }
        );
    }

    private bool EmitExtension(Op* op, in Instruction i, bool signed)
    {
        int to = SizeOf(i, 0);
        int from = SizeOf(i, 1);
        bool memory = TwoOperands(op, i) == Form.RM;
        return Set(
            op,
            signed ? (memory ? MovsxRM(to, from) : MovsxRR(to, from)) : (memory ? MovzxRM(to, from) : MovzxRR(to, from))
        );
    }

    private bool EmitExchange(Op* op, in Instruction i, Handler rr, Handler mr)
    {
        // XCHG encodes memory on either side; Iced puts it first.
        Form form = TwoOperands(op, i);
        return Set(op, form == Form.RR ? rr : mr);
    }

    private bool EmitImul(Op* op, in Instruction i)
    {
        int size = SizeOf(i, 0);
        if (i.OpCount == 1)
        {
            return EmitOneOperand(op, i, ImulR(size), ImulM(size));
        }

        Form form = TwoOperands(op, i);
        if (i.OpCount == 3)
        {
            op->Immediate = i.GetImmediate(2);
            return Set(op, form == Form.RM ? ImulRMI(size) : ImulRRI(size));
        }

        return Set(op, form == Form.RM ? ImulRM(size) : ImulRR(size));
    }

    private bool EmitPush(Op* op, in Instruction i)
    {
        _mayLeave = true;
        int size = -i.StackPointerIncrement;
        switch (i.Op0Kind)
        {
            case OpKind.Memory:
                SetMemory(op, i);
                return Set(op, PushM(size));
            case OpKind.Register when i.Op0Register.IsSegmentRegister():
                op->A = HostSelectorOffset(i.Op0Register);
                return Set(op, size == 2 ? H(&MoveHandlers.Push16) : H(&SystemHandlers.PushSegment));
            case OpKind.Register:
                op->A = Offset(i.Op0Register);
                return Set(op, size == 2 ? H(&MoveHandlers.Push16) : H(&MoveHandlers.Push64));
            default:
                op->Immediate = i.GetImmediate(0);
                return Set(op, PushI(size));
        }
    }

    private bool EmitPop(Op* op, in Instruction i)
    {
        _mayLeave = true;
        int size = i.StackPointerIncrement;
        if (i.Op0Kind == OpKind.Memory)
        {
            // An address based on RSP is computed after the pop, which a separate address part would miss.
            if (HasComposedAddress(i) && i.MemoryBase.GetFullRegister() == Register.RSP)
            {
                return false;
            }

            SetMemory(op, i);
            return Set(op, PopM(size));
        }

        if (i.Op0Register.IsSegmentRegister())
        {
            if (_mode == SimulatedMode.Translated)
            {
                return EmitPrivileged(op, i);
            }

            op->B = HostSelectorOffset(i.Op0Register);
            op->Immediate = (ulong)size;
            return Set(op, H(&SystemHandlers.PopSegment));
        }

        op->A = Offset(i.Op0Register);
        return Set(op, PopR(size));
    }

    private bool EmitString(Op* op, in Instruction i, Handler handler)
    {
        _mayLeave = true;
        // 32-bit addressing would count in ECX and wrap ESI and EDI: gcc never emits it
        bool wide =
            i.Op0Kind is not (OpKind.MemoryESEDI or OpKind.MemorySegESI)
            && i.Op1Kind is not (OpKind.MemoryESEDI or OpKind.MemorySegESI);
        op->Base = SegmentBase(i);
        return wide && Set(op, handler);
    }

    private bool EmitBranch(Op* op, in Instruction i, Handler handler)
    {
        End(op, i.NearBranchTarget, i.NextIP);
        return Set(op, handler);
    }

    private bool EmitIndirect(Op* op, in Instruction i, Handler register, Handler memory)
    {
        if (i.IsCallFarIndirect || i.IsJmpFarIndirect || SizeOf(i, 0) != 8)
        {
            return false;
        }

        EmitOneOperand(op, i, register, memory);
        Leaves(op, i);
        return true;
    }

    private bool TryInteger(Op* op, in Instruction i, ref FusibleForm f)
    {
        switch (i.Mnemonic)
        {
            case Mnemonic.Mov:
                return EmitMov(op, i);
            case Mnemonic.Add:
                return EmitAlu<Add, AddSilent>(op, i, ref f, FusibleAlu.Add);
            case Mnemonic.Sub:
                return EmitAlu<Sub, SubSilent>(op, i, ref f, FusibleAlu.Sub);
            case Mnemonic.And:
                return EmitAlu<And, AndSilent>(op, i, ref f, FusibleAlu.And);
            case Mnemonic.Or:
                return EmitAlu<Or, OrSilent>(op, i, ref f);
            case Mnemonic.Xor:
                return EmitAlu<Xor, XorSilent>(op, i, ref f);
            case Mnemonic.Cmp:
                return EmitAlu<Cmp>(op, i, ref f, FusibleAlu.Cmp);
            case Mnemonic.Test:
                return EmitAlu<Test>(op, i, ref f, FusibleAlu.Test);
            case Mnemonic.Adc:
                return EmitAlu<Adc>(op, i, ref f);
            case Mnemonic.Sbb:
                return EmitAlu<Sbb>(op, i, ref f);
            case Mnemonic.Inc:
                return EmitUnary<Inc>(op, i, ref f, FusibleAlu.Inc);
            case Mnemonic.Dec:
                return EmitUnary<Dec>(op, i, ref f, FusibleAlu.Dec);
            case Mnemonic.Neg:
                return EmitUnary<Neg>(op, i, ref f);
            case Mnemonic.Not:
                return EmitUnary<Not>(op, i, ref f);
            case Mnemonic.Lea:
                op->A = Offset(i.Op0Register);
                SetMemory(op, i);
                _mayLeave = false;
                return Set(op, Lea(SizeOf(i, 0)));
            case Mnemonic.Movzx:
                return EmitExtension(op, i, signed: false);
            case Mnemonic.Movsx or Mnemonic.Movsxd:
                return EmitExtension(op, i, signed: true);
            case Mnemonic.Shl or Mnemonic.Sal:
                return EmitShift<Shl>(
                    op,
                    i,
                    H(&ShiftHandlers.RI<ShlSilent, uint>),
                    H(&ShiftHandlers.RI<ShlSilent, ulong>)
                );
            case Mnemonic.Shr:
                return EmitShift<Shr>(
                    op,
                    i,
                    H(&ShiftHandlers.RI<ShrSilent, uint>),
                    H(&ShiftHandlers.RI<ShrSilent, ulong>)
                );
            case Mnemonic.Sar:
                return EmitShift<Sar>(op, i);
            case Mnemonic.Rol:
                return EmitShift<Rol>(
                    op,
                    i,
                    H(&ShiftHandlers.RI<RolSilent, uint>),
                    H(&ShiftHandlers.RI<RolSilent, ulong>)
                );
            case Mnemonic.Ror:
                return EmitShift<Ror>(
                    op,
                    i,
                    H(&ShiftHandlers.RI<RorSilent, uint>),
                    H(&ShiftHandlers.RI<RorSilent, ulong>)
                );
            case Mnemonic.Rcl:
                return EmitShift<Rcl>(op, i);
            case Mnemonic.Rcr:
                return EmitShift<Rcr>(op, i);
            case Mnemonic.Shld:
                return EmitDouble<LeftWard>(op, i);
            case Mnemonic.Shrd:
                return EmitDouble<RightWard>(op, i);
            case Mnemonic.Mul:
                return EmitOneOperand(op, i, MulR(SizeOf(i, 0)), MulM(SizeOf(i, 0)));
            case Mnemonic.Imul:
                return EmitImul(op, i);
            case Mnemonic.Div:
                _mayLeave = true;
                return EmitOneOperand(op, i, DivR(SizeOf(i, 0)), DivM(SizeOf(i, 0)));
            case Mnemonic.Idiv:
                _mayLeave = true;
                return EmitOneOperand(op, i, IdivR(SizeOf(i, 0)), IdivM(SizeOf(i, 0)));
            case Mnemonic.Bt:
                return EmitBit<BitTest>(op, i);
            case Mnemonic.Bts:
                return EmitBit<BitSet>(op, i);
            case Mnemonic.Btr:
                return EmitBit<BitReset>(op, i);
            case Mnemonic.Btc:
                return EmitBit<BitComplement>(op, i);
            case Mnemonic.Bsf:
                return Set(op, TwoOperands(op, i) == Form.RM ? BsfRM(SizeOf(i, 0)) : BsfRR(SizeOf(i, 0)));
            case Mnemonic.Bsr:
                return Set(op, TwoOperands(op, i) == Form.RM ? BsrRM(SizeOf(i, 0)) : BsrRR(SizeOf(i, 0)));
            case Mnemonic.Xchg:
                return EmitExchange(op, i, XchgRR(SizeOf(i, 0)), XchgMR(SizeOf(i, 0)));
            case Mnemonic.Xadd:
                return EmitExchange(op, i, XaddRR(SizeOf(i, 0)), XaddMR(SizeOf(i, 0)));
            case Mnemonic.Cmpxchg:
                return EmitExchange(op, i, CmpxchgRR(SizeOf(i, 0)), CmpxchgMR(SizeOf(i, 0)));
            case Mnemonic.Cmpxchg8b:
                SetMemory(op, i);
                return Set(op, H(&MoveHandlers.Cmpxchg8b));
            case Mnemonic.Cmpxchg16b:
                SetMemory(op, i);
                return Set(op, H(&MoveHandlers.Cmpxchg16b));
            case Mnemonic.Bswap:
                op->A = Offset(i.Op0Register);
                return Set(
                    op,
                    SizeOf(i, 0) switch
                    {
                        4 => H(&MoveHandlers.Bswap32),
                        8 => H(&MoveHandlers.Bswap64),
                        _ => H(&MoveHandlers.Bswap16),
                    }
                );
            case Mnemonic.Push:
                return EmitPush(op, i);
            case Mnemonic.Pop:
                return EmitPop(op, i);
            case Mnemonic.Leave:
                _mayLeave = true;
                return Set(op, i.Code == Code.Leavew ? H(&MoveHandlers.Leave16) : H(&MoveHandlers.Leave));
            case Mnemonic.Enter when i.Code == Code.Enterq_imm16_imm8:
                _mayLeave = true;
                op->Immediate = i.Immediate16 | ((ulong)i.Immediate8_2nd << 16);
                return Set(op, H(&MoveHandlers.Enter));
            case Mnemonic.Cbw:
                return Set(op, H(&MoveHandlers.Cbw));
            case Mnemonic.Cwde:
                return Set(op, H(&MoveHandlers.Cwde));
            case Mnemonic.Cdqe:
                return Set(op, H(&MoveHandlers.Cdqe));
            case Mnemonic.Cwd:
                return Set(op, H(&MoveHandlers.Cwd));
            case Mnemonic.Cdq:
                return Set(op, H(&MoveHandlers.Cdq));
            case Mnemonic.Cqo:
                return Set(op, H(&MoveHandlers.Cqo));
            case Mnemonic.Xlatb when i.MemoryBase == Register.RBX:
                _mayLeave = true;
                op->Base = 8 * Gpr.Rbx;
                op->Index = SegmentBase(i);
                return Set(op, H(&MoveHandlers.Xlat));
            case Mnemonic.Movsb:
                return EmitString(op, i, StringOp<Movs>(i, 1, false));
            case Mnemonic.Movsw:
                return EmitString(op, i, StringOp<Movs>(i, 2, false));
            case Mnemonic.Movsd when i.Code == Code.Movsd_m32_m32:
                return EmitString(op, i, StringOp<Movs>(i, 4, false));
            case Mnemonic.Movsq:
                return EmitString(op, i, StringOp<Movs>(i, 8, false));
            case Mnemonic.Stosb:
                return EmitString(op, i, StringOp<Stos>(i, 1, false));
            case Mnemonic.Stosw:
                return EmitString(op, i, StringOp<Stos>(i, 2, false));
            case Mnemonic.Stosd:
                return EmitString(op, i, StringOp<Stos>(i, 4, false));
            case Mnemonic.Stosq:
                return EmitString(op, i, StringOp<Stos>(i, 8, false));
            case Mnemonic.Lodsb:
                return EmitString(op, i, StringOp<Lods>(i, 1, false));
            case Mnemonic.Lodsw:
                return EmitString(op, i, StringOp<Lods>(i, 2, false));
            case Mnemonic.Lodsd:
                return EmitString(op, i, StringOp<Lods>(i, 4, false));
            case Mnemonic.Lodsq:
                return EmitString(op, i, StringOp<Lods>(i, 8, false));
            case Mnemonic.Scasb:
                return EmitString(op, i, StringOp<Scas>(i, 1, true));
            case Mnemonic.Scasw:
                return EmitString(op, i, StringOp<Scas>(i, 2, true));
            case Mnemonic.Scasd:
                return EmitString(op, i, StringOp<Scas>(i, 4, true));
            case Mnemonic.Scasq:
                return EmitString(op, i, StringOp<Scas>(i, 8, true));
            case Mnemonic.Cmpsb:
                return EmitString(op, i, StringOp<Cmps>(i, 1, true));
            case Mnemonic.Cmpsw:
                return EmitString(op, i, StringOp<Cmps>(i, 2, true));
            case Mnemonic.Cmpsd when i.Code == Code.Cmpsd_m32_m32:
                return EmitString(op, i, StringOp<Cmps>(i, 4, true));
            case Mnemonic.Cmpsq:
                return EmitString(op, i, StringOp<Cmps>(i, 8, true));
            case Mnemonic.Jmp when i.IsJmpShortOrNear:
                return EmitBranch(op, i, H(&BranchHandlers.Jmp));
            case Mnemonic.Jmp:
                return EmitIndirect(op, i, H(&BranchHandlers.JmpR), H(&BranchHandlers.JmpM));
            case Mnemonic.Call when i.IsCallNear:
                return EmitBranch(op, i, H(&BranchHandlers.Call));
            case Mnemonic.Call:
                return EmitIndirect(op, i, H(&BranchHandlers.CallR), H(&BranchHandlers.CallM));
            case Mnemonic.Ret when i.Code is Code.Retnq or Code.Retnq_imm16:
                op->Immediate = i.OpCount == 1 ? i.Immediate16 : 0UL;
                Leaves(op, i);
                return Set(op, H(&BranchHandlers.Ret));
            case Mnemonic.Loop:
                return EmitBranch(op, i, IsWideCount(i) ? H(&BranchHandlers.Loop) : H(&BranchHandlers.Loop32));
            case Mnemonic.Loope:
                return EmitBranch(op, i, IsWideCount(i) ? H(&BranchHandlers.Loope) : H(&BranchHandlers.Loope32));
            case Mnemonic.Loopne:
                return EmitBranch(op, i, IsWideCount(i) ? H(&BranchHandlers.Loopne) : H(&BranchHandlers.Loopne32));
            case Mnemonic.Jrcxz:
                return EmitBranch(op, i, H(&BranchHandlers.Jrcxz));
            case Mnemonic.Jecxz:
                return EmitBranch(op, i, H(&BranchHandlers.Jecxz));
        }

        if (i.ConditionCode == ConditionCode.None)
        {
            return false;
        }

        if (i.IsJccShortOrNear)
        {
            return EmitBranch(op, i, Jcc(i.ConditionCode));
        }

        if (i.Op0Kind == OpKind.Register && i.OpCount == 2)
        {
            // CMOVcc
            int size = SizeOf(i, 0);
            return Set(
                op,
                TwoOperands(op, i) == Form.RM ? CmovRM(i.ConditionCode, size) : CmovRR(i.ConditionCode, size)
            );
        }

        return i.OpCount == 1 && EmitOneOperand(op, i, SetccR(i.ConditionCode), SetccM(i.ConditionCode));
    }

    private static bool IsWideCount(in Instruction i) =>
        i.Code is Code.Loop_rel8_64_RCX or Code.Loope_rel8_64_RCX or Code.Loopne_rel8_64_RCX;
}
