/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* A vhost-user export of a block backend, in the backend's AioContext. Everything on the main thread. */
#ifndef AIO_EXPORT_H
#define AIO_EXPORT_H

#include "stand-in.h"

typedef struct VuExport VuExport;

/* Exports `blk` at an address as vu_server_start() knows them; 0 or -errno. */
int vu_export_new(BlockBackend *blk, const char *address, VuExport **exp);
/* Also inside a drained section. */
void vu_export_delete(VuExport *exp);

#endif
