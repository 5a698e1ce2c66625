/* A library with the names of libvhost-user's functions. Each returns its place in the list.*/
#include "libvhost-user-names.h"

enum {
#define NUMBER(name) number_of_##name,
    LIBVHOST_USER_NAMES(NUMBER)
};

#define DEFINE(name)             \
    int name(void);              \
    int name(void)               \
    {                            \
        return number_of_##name; \
    }
LIBVHOST_USER_NAMES(DEFINE)
