namespace VirtBench.Vmm.Disks;

/// <summary>
/// Layouts and numbers of virtio 1.2 (OASIS Committee Specification 01, 1 July 2022) that the block device and its drivers share:
/// registers of section 4.2.2, split rings of section 2.7, block requests of section 5.2.
/// </summary>
public static class VirtioLayout
{
    // Registers, 32 bits each (table 4.1).
    internal const int MagicValue = 0x000;
    internal const int Version = 0x004;
    internal const int DeviceId = 0x008;
    internal const int VendorId = 0x00C;
    internal const int DeviceFeatures = 0x010;
    internal const int DeviceFeaturesSelect = 0x014;
    internal const int DriverFeatures = 0x020;
    internal const int DriverFeaturesSelect = 0x024;
    internal const int QueueSelect = 0x030;
    internal const int QueueSizeMaximum = 0x034;
    internal const int QueueSize = 0x038;
    internal const int QueueReady = 0x044;
    internal const int QueueNotify = 0x050;
    internal const int InterruptStatus = 0x060;
    internal const int InterruptAcknowledge = 0x064;
    internal const int Status = 0x070;
    internal const int DescriptorsLow = 0x080;
    internal const int DescriptorsHigh = 0x084;
    internal const int AvailableLow = 0x090;
    internal const int AvailableHigh = 0x094;
    internal const int UsedLow = 0x0A0;
    internal const int UsedHigh = 0x0A4;
    internal const int SharedMemoryLengthLow = 0x0B0;
    internal const int SharedMemoryLengthHigh = 0x0B4;
    internal const int SharedMemoryBaseLow = 0x0B8;
    internal const int SharedMemoryBaseHigh = 0x0BC;
    internal const int ConfigurationGeneration = 0x0FC;
    internal const int Configuration = 0x100;

    internal const uint Magic = 0x7472_6976; // "virt"
    internal const uint BlockDevice = 2;

    // Device status (section 2.1).
    internal const uint StatusFeaturesOk = 8;
    internal const uint StatusDriverOk = 4;
    internal const uint StatusNeedsReset = 64;
    internal const uint StatusWritable = 0x8F; // all but DEVICE_NEEDS_RESET

    internal const uint InterruptUsedBuffer = 1;
    internal const uint InterruptConfiguration = 2;

    // Features (sections 5.2.3 and 6).
    internal const ulong FeatureSizeMaximum = 1UL << 1;
    internal const ulong FeatureSegmentMaximum = 1UL << 2;
    internal const ulong FeatureReadOnly = 1UL << 5;
    internal const ulong FeatureFlush = 1UL << 9;
    internal const ulong FeatureIndirect = 1UL << 28;
    internal const ulong FeatureEventIndex = 1UL << 29;
    internal const ulong FeatureVersion1 = 1UL << 32;

    // Split ring.
    internal const ushort DescriptorNext = 1;
    internal const ushort DescriptorWrite = 2;
    internal const ushort DescriptorIndirect = 4;
    internal const int DescriptorSize = 16;
    internal const int UsedElementSize = 8;
    internal const int RingHeader = 4; // flags and index, before the elements of either ring
    internal const ushort AvailableNoInterrupt = 1;
    internal const ushort UsedNoNotify = 1;

    // Block requests.
    internal const uint RequestIn = 0;
    internal const uint RequestOut = 1;
    internal const uint RequestFlush = 4;
    internal const uint RequestGetId = 8;
    internal const int RequestHeader = 16; // type, reserved, sector
    internal const int IdentificationLength = 20;
    internal const byte StatusOk = 0;
    internal const byte StatusIoError = 1;
    internal const byte StatusUnsupported = 2;

    /// <summary>
    /// Whether an index that has gone from <paramref name="old"/> to <paramref name="now"/> has passed the one that the other side
    /// waits for (section 2.7.10.1, vring_need_event). All of them count modulo 65536.
    /// </summary>
    /// <param name="waitsFor">The other side's event index.</param>
    /// <param name="now">The index now.</param>
    /// <param name="old">The index when the other side was told the last time.</param>
    public static bool NeedsEvent(ushort waitsFor, ushort now, ushort old) =>
        (ushort)(now - waitsFor - 1) < (ushort)(now - old);
}
