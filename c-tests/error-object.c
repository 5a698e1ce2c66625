/* vu_error: optional, NULL on success, survives what made it. */
#include "fixture.h"

int main(void)
{
    vu_server_config config = test_config();
    vu_error *error = (vu_error *)&config;
    vu_server *server;

    ok(vu_server_new(&config, &null_ops, NULL, &server, &error));
    check(error == NULL);
    err(vu_server_start(server, "tcp:x", NULL, &error), -EINVAL);
    err(vu_server_start(server, "tcp:x", NULL, NULL), -EINVAL);
    ok(vu_server_free(server));
    err(vu_error_code(error), -EINVAL);
    check(strstr(vu_error_message(error), "tcp:x") != NULL);
    check(strchr(vu_error_message(error), '\n') == NULL);
    vu_error_free(error);
    return 0;
}
