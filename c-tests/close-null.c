/* Freeing nothing is fine. */
#include "fixture.h"

int main(void)
{
    ok(vu_server_free(NULL));
    ok(vu_ctx_free(NULL));
    vu_error_free(NULL);
    return 0;
}
