/*
 * A guest in C for `virtbench exec`: counts primes, prints the count on the serial console and ends with status 0.
 *
 *   gcc -O2 -ffreestanding -fno-stack-protector -fno-pic -mno-red-zone -nostdlib -static -Wl,-Ttext-segment=0x100000 \
 *       -Wl,--build-id=none -o primes.elf primes.c
 *   ./virtbench exec --guest primes.elf --strategy trap-and-emulate --param 20000
 *
 * Entry: long mode, ring 0, interrupts off, the first GiB identity-mapped, RDI = boot information, 64 KiB of stack.
 * Nothing below 64 KiB may be touched.
 */
typedef unsigned long u64;

struct boot_info {
    u64 magic, ram_bytes, tsc_hz, flags, hypercall_page, shared_info_page, parameter_count, parameters[];
};

static inline void out8(unsigned short port, unsigned char value)
{
    __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static inline void out32(unsigned short port, unsigned value)
{
    __asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static void print(const char *text)
{
    while (*text)
        out8(0x3F8, *text++);
}

static void print_number(u64 value)
{
    char digits[21];
    char *at = digits + sizeof digits - 1;
    *at = 0;
    do {
        *--at = '0' + value % 10;
        value /= 10;
    } while (value);
    print(at);
}

static unsigned char composite[1 << 20];

void _start(const struct boot_info *boot)
{
    u64 limit = boot->parameter_count ? boot->parameters[0] : 10000;
    u64 count = 0;
    if (limit > sizeof composite)
        limit = sizeof composite;

    out32(0xB0, 7); /* measured region 7 begins */
    for (u64 n = 2; n < limit; n++) {
        if (composite[n])
            continue;
        count++;
        for (u64 multiple = n * n; multiple < limit; multiple += n)
            composite[multiple] = 1;
    }
    out32(0xB4, (unsigned)limit); /* and ends: so many numbers tried */

    print("primes below ");
    print_number(limit);
    print(": ");
    print_number(count);
    print("\n");
    out8(0xF4, 0);
    __builtin_unreachable();
}
