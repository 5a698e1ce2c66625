/* Header, library and build system agree about the version. */
#include "fixture.h"

int main(void)
{
    char text[32];

    check(vu_version() == VU_SERVER_VERSION);
    check(strcmp(vu_version_string(), VU_SERVER_VERSION_STRING) == 0);
    check(strcmp(vu_version_string(), EXPECTED_VERSION) == 0);
    snprintf(text, sizeof(text), "%u.%u.%u", vu_version() >> 16, vu_version() >> 8 & 0xff,
             vu_version() & 0xff);
    check(strcmp(text, EXPECTED_VERSION) == 0);
    check(VU_SERVER_VERSION == (VU_SERVER_VERSION_MAJOR << 16 | VU_SERVER_VERSION_MINOR << 8 |
                                VU_SERVER_VERSION_PATCH));
    return 0;
}
