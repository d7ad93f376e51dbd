using System.Collections;
using System.Globalization;
using System.Reflection;
using System.Text;
using VirtBench.Vmm.Cpu;

namespace VirtBench.Tests;

/// <summary>The whole state of a CPU or a device as text, private fields included, so that none is forgotten.</summary>
internal static class StateDump
{
    private const BindingFlags Instance = BindingFlags.Instance | BindingFlags.Public | BindingFlags.NonPublic;

    public static unsafe string Of(VirtualCpu cpu)
    {
        var text = new StringBuilder(Convert.ToHexString(new ReadOnlySpan<byte>(cpu.Registers, GuestRegisters.Size)));
        foreach (PropertyInfo property in typeof(VirtualCpu).GetProperties())
        {
            if (
                property.GetIndexParameters().Length == 0
                && !property.PropertyType.IsByRef
                && !property.PropertyType.IsPointer
            )
            {
                Append(text.Append('\n').Append(property.Name).Append('='), property.GetValue(cpu));
            }
        }

        return text.ToString();
    }

    public static string OfDevice(object device)
    {
        var text = new StringBuilder();
        Append(text, device);
        return text.ToString();
    }

    private static void Append(StringBuilder text, object? value)
    {
        switch (value)
        {
            case null:
                text.Append('-');
                return;
            case Delegate:
                return;
            case string or bool or Enum:
                text.Append(value);
                return;
            case IFormattable number when value.GetType().IsPrimitive:
                text.Append(number.ToString(null, CultureInfo.InvariantCulture));
                return;
            case IEnumerable items:
                foreach (object? item in items)
                {
                    Append(text.Append(' '), item);
                }

                return;
        }

        for (Type? type = value.GetType(); type is not null && type != typeof(object); type = type.BaseType)
        {
            foreach (FieldInfo field in type.GetFields(Instance | BindingFlags.DeclaredOnly))
            {
                if (IsState(field.FieldType))
                {
                    Append(text.Append('\n').Append(field.Name).Append('='), field.GetValue(value));
                }
            }
        }
    }

    // A device's clock and the controller it is wired to are not its own state.
    private static bool IsState(Type type) =>
        !type.IsInterface && !type.IsPointer && type != typeof(Vmm.Interrupts.InterruptController);
}
