/* What a queue says about itself before any front-end has come. */
#include "fixture.h"

int main(void)
{
    vu_server_config config = test_config();
    vu_server *server;
    vu_elem *elem;

    config.num_queues = 3;
    ok(vu_server_new(&config, &null_ops, NULL, &server, NULL));
    for (uint32_t i = 0; i < 3; i++) {
        vu_vq *vq = vu_server_vq(server, i);

        check(vu_vq_index(vq) == i);
        check(vu_vq_size(vq) == 0);
        check(vu_vq_enabled(vq) == 0);
        check(vu_vq_server(vq) == server);
        check(vu_vq_data(vq) == NULL);
        vu_vq_set_data(vq, &config);
        check(vu_vq_data(vq) == &config);
        err(vu_vq_pop(vq, &elem, 1), -EXDEV);
        err(vu_vq_flush(vq), -EXDEV);
        check(vu_server_vq(server, i) == vq);
    }
    check(vu_server_features(server) == 0);
    ok(vu_server_free(server));
    return 0;
}
