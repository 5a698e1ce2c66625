/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* The library's statistics as one line of JSON. */
#ifndef VU_BLK_STATS_H
#define VU_BLK_STATS_H

#include <stdint.h>
#include <vu_server.h>

/* On stderr. */
void stats_print(const vu_server *server, uint32_t num_queues);

#endif
