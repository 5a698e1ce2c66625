/* Each header for an event loop compiles by itself and with the others; nothing runs. */
#include <vu_server/event.h>
#include <vu_server/glib.h>
#include <vu_server/uv.h>

int make(GMainContext *glib, uv_loop_t *uv, struct event_base *event, vu_ctx *ctxs[3]);

int make(GMainContext *glib, uv_loop_t *uv, struct event_base *event, vu_ctx *ctxs[3])
{
    int rc = vu_ctx_new_glib(glib, &ctxs[0], NULL);

    if (rc >= 0)
        rc = vu_ctx_new_uv(uv, &ctxs[1], NULL);
    if (rc >= 0)
        rc = vu_ctx_new_event(event, &ctxs[2], NULL);
    return rc;
}
