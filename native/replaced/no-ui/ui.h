// What llama-server asks of its web page, for a server without one: the page's sources need npm, and the archive that
// vendor/llama.cpp.lock pins lacks the template that llama.cpp's own build makes this header from.
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
