// What llama-server asks of its web page, for a server without one. llama.cpp makes the same from a template with
// LLAMA_BUILD_UI=OFF, but that is in tools/ui, with the page's sources, which vendor/fetch.py does not unpack.
#pragma once

#include <string>
#include <vector>

struct llama_ui_asset {
    std::string name;
};

inline const std::vector<llama_ui_asset> & llama_ui_get_assets() {
    static const std::vector<llama_ui_asset> none;
    return none;
}
