/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* What the program says when it serves: the disk, and how QEMU gets at it. */
#ifndef VU_BLK_ANNOUNCE_H
#define VU_BLK_ANNOUNCE_H

#include "image.h"
#include "options.h"
#include "socket.h"

void announce(const struct options *options, const struct image *image,
              const struct socket_info *socket);

#endif
