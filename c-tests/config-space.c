/* The configuration space is copied, bounded, and changed as a whole or not at all. */
#include "fixture.h"

int main(void)
{
    unsigned char space[8] = {1, 2, 3, 4, 5, 6, 7, 8}, got[8];
    vu_server_config config = test_config();
    vu_server *server;

    config.config_space = space;
    config.config_size = sizeof(space);
    ok(vu_server_new(&config, &null_ops, NULL, &server, NULL));
    space[0] = 99;
    ok(vu_server_get_config(server, 0, got, 8));
    check(got[0] == 1 && got[7] == 8);

    ok(vu_server_set_config(server, 6, "ab", 2));
    ok(vu_server_get_config(server, 5, got, 3));
    check(memcmp(got, "\x06"
                      "ab",
                 3) == 0);

    err(vu_server_get_config(server, 0, got, 0), -EINVAL);
    err(vu_server_get_config(server, 0, got, 9), -EINVAL);
    err(vu_server_get_config(server, 8, got, 1), -EINVAL);
    err(vu_server_get_config(server, UINT32_MAX, got, 2), -EINVAL);
    err(vu_server_get_config(server, 0, got, UINT32_MAX), -EINVAL);
    err(vu_server_set_config(server, 7, "ab", 2), -EINVAL);
    err(vu_server_set_config(server, 0, "", UINT32_MAX), -EINVAL);
    ok(vu_server_get_config(server, 7, got, 1));
    check(got[0] == 'b');
    ok(vu_server_free(server));
    return 0;
}
