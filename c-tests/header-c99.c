/* The header alone, as strict C99 (see the test's c_std). */
#include <vu_server.h>

#if __STDC_VERSION__ != 199901L || !defined(__STRICT_ANSI__)
#error "this test is about strict C99"
#endif

int main(void)
{
    vu_server_config config = VU_SERVER_CONFIG_INIT;
    const vu_device_ops ops = { VU_DEVICE_OPS_INIT };
    const vu_ctx_ops ctx_ops = { VU_CTX_OPS_INIT };
    vu_server_stats server_stats = VU_SERVER_STATS_INIT;
    vu_vq_stats vq_stats = VU_VQ_STATS_INIT;

    return config.struct_size != sizeof config || ops.struct_size != sizeof ops ||
           ctx_ops.struct_size != sizeof ctx_ops ||
           server_stats.struct_size != sizeof server_stats ||
           vq_stats.struct_size != sizeof vq_stats;
}
